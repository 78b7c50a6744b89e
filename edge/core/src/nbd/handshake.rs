//! Negotiation, fixed newstyle: from the first byte to the begin of transmission.
//!
//! The machine is fed what arrived and writes what is to be sent. Where an answer needs facts about exports it asks
//! ([`Step::Ask`]) and takes no more input until [`Handshake::answer_list`] or [`Handshake::answer_export`] told them.
//!
//! ```text
//! ClientFlags ─▶ Options ─┬─▶ Asking ─┬─▶ Options
//!                 ▲   │   │           └─▶ Finished (GO, EXPORT_NAME)
//!                 └ Draining          ─▶ Finished (ABORT, anything hopeless)
//! ```
//!
//! Invariant: each option is answered exactly once, in order, however strange it is; data of an option are never held
//! beyond [`OPTION_DATA_MAX`].

use super::{
    Access, BASE_ALLOCATION, BASE_ALLOCATION_ID, BLOCK_MIN, BLOCK_PREFERRED, Fields, MAGIC,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_MAX, STRING_MAX, handshake_flag, info, option,
    option_reply as reply, request::Terms, transmission_flags,
};
use bytes::{Buf, BufMut, BytesMut};

/// Data of one option; queries for metadata contexts are the longest.
pub const OPTION_DATA_MAX: u32 = 32 << 10;
/// Longer data than we take are read away up to here and answered `TOO_BIG`; beyond, the connection is closed.
pub const OPTION_DRAIN_MAX: u32 = 4 << 20;
/// Options of one negotiation; a client with more is playing.
pub const OPTIONS_MAX: u32 = 1024;
/// Queries of one metadata option.
const QUERIES_MAX: u32 = 64;
const ERROR_TEXT_MAX: usize = 1024;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send what was written; feed more.
    Wait,
    /// Send what was written; find out and answer.
    Ask(Query),
    /// Send what was written; requests follow.
    Begin(Terms),
    /// Send what was written; close.
    Close,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// Every export. Answer by [`Handshake::answer_list`].
    List,
    /// One export. Answer by [`Handshake::answer_export`].
    Export { name: String, purpose: Purpose },
}

/// What the client wants with an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Only to know about it.
    Look,
    /// To use it: transmission begins if it can be opened.
    Open,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The name in full, also when the client asked for the default export.
    pub name: String,
    pub description: String,
    pub size: u64,
    pub access: Access,
}

/// Why there is no such export for this client. The text reaches the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Unknown(String),
    /// It exists but isn't given to this client.
    Denied(String),
    /// It may be there later.
    Unavailable(String),
}

/// The client broke the protocol in a way that has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("client sets unknown flags {0:#x}")]
    ClientFlags(u32),
    #[error("option doesn't begin with the magic number")]
    OptionMagic,
    #[error("option announces {0} bytes of data, beyond any limit")]
    OptionTooLong(u32),
    #[error("more than {OPTIONS_MAX} options")]
    TooManyOptions,
    #[error("export `{name}` can't be opened, and EXPORT_NAME has no error reply: {why}")]
    NoReplyPossible { name: String, why: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InfoOption {
    Info,
    Go,
}

/// Facts that the client wants besides those that it always gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Wanted {
    name: bool,
    description: bool,
}

/// What a client's queries for metadata contexts match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Selected {
    BaseAllocation,
    Nothing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Asking {
    List,
    ExportName { name: String },
    Info { option: InfoOption, name: String, wanted: Wanted },
    Contexts { option: u32, name: String, selected: Selected },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    ClientFlags,
    Options,
    Draining { option: u32, left: u32 },
    Asking(Asking),
    Finished,
}

#[derive(Debug)]
pub struct Handshake {
    state: State,
    options: u32,
    zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was selected.
    context_for: Option<String>,
}

impl Handshake {
    /// Writes the greeting.
    #[must_use]
    pub fn begin(out: &mut BytesMut) -> Self {
        out.put_u64(MAGIC);
        out.put_u64(OPTION_MAGIC);
        out.put_u16(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        Self {
            state: State::ClientFlags,
            options: 0,
            zeroes: true,
            structured: false,
            context_for: None,
        }
    }

    /// Consumes what it can of `input` and writes the answers.
    ///
    /// # Errors
    /// When the connection must end without a further word.
    pub fn advance(
        &mut self,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Step, HandshakeError> {
        loop {
            let step = match self.state {
                State::ClientFlags => self.client_flags(input)?,
                State::Options => self.option(input, out)?,
                State::Draining { option, left } => self.drain(input, out, (option, left)),
                // One question at a time: the driver answers before it feeds on.
                State::Asking(_) => Some(Step::Wait),
                State::Finished => Some(Step::Close),
            };
            if let Some(step) = step {
                return Ok(step);
            }
        }
    }

    fn client_flags(&mut self, input: &mut BytesMut) -> Result<Option<Step>, HandshakeError> {
        if input.len() < 4 {
            return Ok(Some(Step::Wait));
        }
        let flags = input.get_u32();
        let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        if flags & !known != 0 {
            return Err(HandshakeError::ClientFlags(flags));
        }
        self.zeroes = flags & u32::from(handshake_flag::NO_ZEROES) == 0;
        self.state = State::Options;
        Ok(None)
    }

    fn drain(
        &mut self,
        input: &mut BytesMut,
        out: &mut BytesMut,
        (option, left): (u32, u32),
    ) -> Option<Step> {
        let now = input.len().min(left as usize);
        input.advance(now);
        let left = left - model::u32_of(now);
        if left > 0 {
            self.state = State::Draining { option, left };
            return Some(Step::Wait);
        }
        refuse(out, option, reply::ERR_TOO_BIG, "the data of this option are too long");
        self.state = State::Options;
        None
    }

    fn option(
        &mut self,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<Step>, HandshakeError> {
        let mut header = Fields(input);
        let (Some(magic), Some(option), Some(len)) = (header.u64(), header.u32(), header.u32())
        else {
            return Ok(Some(Step::Wait));
        };
        if magic != OPTION_MAGIC {
            return Err(HandshakeError::OptionMagic);
        }
        if len > OPTION_DATA_MAX {
            if len > OPTION_DRAIN_MAX || option == option::EXPORT_NAME {
                return Err(HandshakeError::OptionTooLong(len));
            }
            input.advance(16);
            self.count()?;
            self.state = State::Draining { option, left: len };
            return Ok(None);
        }
        if input.len() < 16 + len as usize {
            return Ok(Some(Step::Wait));
        }
        self.count()?;
        input.advance(16);
        let data = input.split_to(len as usize);
        self.whole_option(option, &data, out)
    }

    const fn count(&mut self) -> Result<(), HandshakeError> {
        self.options += 1;
        if self.options > OPTIONS_MAX { Err(HandshakeError::TooManyOptions) } else { Ok(()) }
    }

    fn whole_option(
        &mut self,
        option: u32,
        data: &[u8],
        out: &mut BytesMut,
    ) -> Result<Option<Step>, HandshakeError> {
        let step = match option {
            option::EXPORT_NAME => return self.export_name(data).map(Some),
            option::ABORT => {
                put_reply(out, option, reply::ACK, &[]);
                self.state = State::Finished;
                Some(Step::Close)
            }
            option::LIST if data.is_empty() => {
                self.state = State::Asking(Asking::List);
                Some(Step::Ask(Query::List))
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                put_reply(out, option, reply::ACK, &[]);
                None
            }
            option::LIST | option::STRUCTURED_REPLY => {
                refuse(out, option, reply::ERR_INVALID, "this option carries no data");
                None
            }
            option::GO => self.info(InfoOption::Go, data, out),
            option::INFO => self.info(InfoOption::Info, data, out),
            option::SET_META_CONTEXT | option::LIST_META_CONTEXT => {
                self.contexts(option, data, out)
            }
            option::STARTTLS => {
                refuse(out, option, reply::ERR_UNSUP, "this server speaks NBD without TLS");
                None
            }
            _ => {
                refuse(out, option, reply::ERR_UNSUP, "this option isn't known here");
                None
            }
        };
        Ok(step)
    }

    /// The old way to open: no error can be told, so whatever is wrong closes the connection.
    fn export_name(&mut self, data: &[u8]) -> Result<Step, HandshakeError> {
        let why = |why: &str| HandshakeError::NoReplyPossible {
            name: String::from_utf8_lossy(&data[..data.len().min(80)]).into_owned(),
            why: why.to_owned(),
        };
        let name = std::str::from_utf8(data).map_err(|_| why("the name isn't UTF-8"))?;
        if name.len() > STRING_MAX {
            return Err(why("the name is too long"));
        }
        if let Err(Refusal::Unknown(text) | Refusal::Denied(text)) = legal(name) {
            return Err(why(&text));
        }
        let name = name.to_owned();
        self.state = State::Asking(Asking::ExportName { name: name.clone() });
        Ok(Step::Ask(Query::Export { name, purpose: Purpose::Open }))
    }

    fn info(&mut self, which: InfoOption, data: &[u8], out: &mut BytesMut) -> Option<Step> {
        let (option, purpose) = match which {
            InfoOption::Info => (option::INFO, Purpose::Look),
            InfoOption::Go => (option::GO, Purpose::Open),
        };
        let Some((name, wanted)) = parse_info(data) else {
            refuse(out, option, reply::ERR_INVALID, "malformed option data");
            return None;
        };
        if let Err(refusal) = legal(&name) {
            put_refusal(out, option, &refusal);
            return None;
        }
        self.state = State::Asking(Asking::Info { option: which, name: name.clone(), wanted });
        Some(Step::Ask(Query::Export { name, purpose }))
    }

    fn contexts(&mut self, option: u32, data: &[u8], out: &mut BytesMut) -> Option<Step> {
        if option == option::SET_META_CONTEXT {
            // A new selection replaces the old one, also when it fails.
            self.context_for = None;
        }
        if !self.structured {
            refuse(out, option, reply::ERR_INVALID, "structured replies must be negotiated first");
            return None;
        }
        let Some((name, queries)) = parse_contexts(data) else {
            refuse(out, option, reply::ERR_INVALID, "malformed option data");
            return None;
        };
        if let Err(refusal) = legal(&name) {
            put_refusal(out, option, &refusal);
            return None;
        }
        let listing = option == option::LIST_META_CONTEXT;
        let matched = queries.contains(&BASE_ALLOCATION)
            || listing && (queries.is_empty() || queries.contains(&"base:"));
        let selected = if matched { Selected::BaseAllocation } else { Selected::Nothing };
        self.state = State::Asking(Asking::Contexts { option, name: name.clone(), selected });
        Some(Step::Ask(Query::Export { name, purpose: Purpose::Look }))
    }

    /// The answer to [`Query::List`].
    pub fn answer_list(&mut self, exports: Result<Vec<String>, String>, out: &mut BytesMut) {
        assert_eq!(self.state, State::Asking(Asking::List), "a list was asked for");
        self.state = State::Options;
        match exports {
            Err(why) => refuse(out, option::LIST, reply::ERR_SHUTDOWN, &why),
            Ok(names) => {
                for name in names {
                    let mut data = Vec::with_capacity(4 + name.len());
                    data.put_u32(model::u32_of(name.len()));
                    data.put_slice(name.as_bytes());
                    put_reply(out, option::LIST, reply::SERVER, &data);
                }
                put_reply(out, option::LIST, reply::ACK, &[]);
            }
        }
    }

    /// The answer to [`Query::Export`]; call [`Self::advance`] again when it says [`Step::Wait`].
    ///
    /// # Errors
    /// When the refusal can't be told to the client.
    ///
    /// # Panics
    /// When no export was asked for: a bug of the driver.
    pub fn answer_export(
        &mut self,
        answer: Result<Export, Refusal>,
        out: &mut BytesMut,
    ) -> Result<Step, HandshakeError> {
        let State::Asking(asking) = std::mem::replace(&mut self.state, State::Options) else {
            panic!("no export was asked for");
        };
        match (asking, answer) {
            (Asking::List, _) => panic!("a list was asked for, not an export"),
            (Asking::ExportName { name }, Err(refusal)) => {
                self.state = State::Finished;
                let why = refusal.text().to_owned();
                Err(HandshakeError::NoReplyPossible { name, why })
            }
            (Asking::ExportName { name }, Ok(export)) => {
                out.put_u64(export.size);
                out.put_u16(transmission_flags(export.access));
                if self.zeroes {
                    out.put_bytes(0, 124);
                }
                Ok(self.begin_transmission(&name, &export))
            }
            (Asking::Info { option, .. }, Err(refusal)) => {
                put_refusal(out, option.number(), &refusal);
                Ok(Step::Wait)
            }
            (Asking::Info { option, name, wanted }, Ok(export)) => {
                put_info(out, option.number(), wanted, &export);
                put_reply(out, option.number(), reply::ACK, &[]);
                match option {
                    InfoOption::Info => Ok(Step::Wait),
                    InfoOption::Go => Ok(self.begin_transmission(&name, &export)),
                }
            }
            (Asking::Contexts { option, .. }, Err(refusal)) => {
                put_refusal(out, option, &refusal);
                Ok(Step::Wait)
            }
            (Asking::Contexts { option, name, selected }, Ok(_)) => {
                self.select_context(option, name, selected, out);
                Ok(Step::Wait)
            }
        }
    }

    fn select_context(
        &mut self,
        option: u32,
        name: String,
        selected: Selected,
        out: &mut BytesMut,
    ) {
        if selected == Selected::BaseAllocation {
            let listing = option == option::LIST_META_CONTEXT;
            let mut data = Vec::with_capacity(4 + BASE_ALLOCATION.len());
            data.put_u32(if listing { 0 } else { BASE_ALLOCATION_ID });
            data.put_slice(BASE_ALLOCATION.as_bytes());
            put_reply(out, option, reply::META_CONTEXT, &data);
            if !listing {
                self.context_for = Some(name);
            }
        }
        put_reply(out, option, reply::ACK, &[]);
    }

    fn begin_transmission(&mut self, asked_name: &str, export: &Export) -> Step {
        self.state = State::Finished;
        Step::Begin(Terms {
            size: export.size,
            access: export.access,
            structured: self.structured,
            block_status: self.structured && self.context_for.as_deref() == Some(asked_name),
        })
    }
}

impl InfoOption {
    const fn number(self) -> u32 {
        match self {
            Self::Info => option::INFO,
            Self::Go => option::GO,
        }
    }
}

impl Refusal {
    #[must_use]
    pub fn text(&self) -> &str {
        let (Self::Unknown(text) | Self::Denied(text) | Self::Unavailable(text)) = self;
        text
    }
}

/// Names that can't be a vDisk's are refused before anyone is asked. Empty means the default export.
fn legal(name: &str) -> Result<(), Refusal> {
    if let Some((vdisk, _)) = name.split_once('@') {
        return Err(Refusal::Denied(format!(
            "snapshots (`{vdisk}@…`) aren't exported by this version; export a vDisk by its name"
        )));
    }
    if name.is_empty() || wire::router::is_legal_name(name) {
        Ok(())
    } else {
        Err(Refusal::Unknown("no vDisk can have this name".to_owned()))
    }
}

fn parse_info(data: &[u8]) -> Option<(String, Wanted)> {
    let mut fields = Fields(data);
    let name = fields.text()?.to_owned();
    let mut wanted = Wanted::default();
    for _ in 0..fields.u16()? {
        match fields.u16()? {
            info::NAME => wanted.name = true,
            info::DESCRIPTION => wanted.description = true,
            _ => {}
        }
    }
    fields.is_empty().then_some((name, wanted))
}

fn parse_contexts(data: &[u8]) -> Option<(String, Vec<&str>)> {
    let mut fields = Fields(data);
    let name = fields.text()?.to_owned();
    let count = fields.u32()?;
    if count > QUERIES_MAX {
        return None;
    }
    let queries = (0..count).map(|_| fields.text()).collect::<Option<Vec<_>>>()?;
    fields.is_empty().then_some((name, queries))
}

fn put_reply(out: &mut BytesMut, option: u32, kind: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(model::u32_of(data.len()));
    out.put_slice(data);
}

fn refuse(out: &mut BytesMut, option: u32, kind: u32, text: &str) {
    let end = text.floor_char_boundary(ERROR_TEXT_MAX);
    put_reply(out, option, kind, &text.as_bytes()[..end]);
}

fn put_refusal(out: &mut BytesMut, option: u32, refusal: &Refusal) {
    let kind = match refusal {
        Refusal::Unknown(_) => reply::ERR_UNKNOWN,
        Refusal::Denied(_) => reply::ERR_POLICY,
        Refusal::Unavailable(_) => reply::ERR_SHUTDOWN,
    };
    refuse(out, option, kind, refusal.text());
}

fn put_info(out: &mut BytesMut, option: u32, wanted: Wanted, export: &Export) {
    let mut data = Vec::with_capacity(64);
    data.put_u16(info::EXPORT);
    data.put_u64(export.size);
    data.put_u16(transmission_flags(export.access));
    put_reply(out, option, reply::INFO, &data);

    data.clear();
    data.put_u16(info::BLOCK_SIZE);
    data.put_u32(BLOCK_MIN);
    data.put_u32(BLOCK_PREFERRED);
    data.put_u32(PAYLOAD_MAX);
    put_reply(out, option, reply::INFO, &data);

    let texts = [
        (wanted.name, info::NAME, &export.name),
        (wanted.description, info::DESCRIPTION, &export.description),
    ];
    for (_, kind, text) in texts.into_iter().filter(|(wanted, ..)| *wanted) {
        data.clear();
        data.put_u16(kind);
        data.put_slice(text.as_bytes());
        put_reply(out, option, reply::INFO, &data);
    }
}

#[cfg(test)]
mod tests;
