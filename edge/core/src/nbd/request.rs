//! Requests of the transmission phase: 28 bytes to something checked that may be carried out.
//!
//! Parsing says how many payload bytes follow, whatever else is wrong, so that the stream stays in step; checking
//! turns a well-formed but impossible request into the error that the protocol names for it.

use super::{
    Access, DRAIN_MAX, Errno, Fields, PAYLOAD_MAX, REQUEST_MAGIC, command as cmd,
    command_flag as flag,
};
use wire::router::{Durability, UnmapKind};

pub const HEADER_LEN: usize = 28;

/// A request as it stands in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub kind: u16,
    /// Chosen by the client; comes back in the reply.
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
}

/// The stream is out of step or abused: nothing sensible can follow, the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("request doesn't begin with the magic number but with {0:#010x}")]
    Magic(u32),
    #[error("a write of {0} bytes is announced, beyond any limit")]
    TooLong(u32),
}

impl Request {
    /// # Errors
    /// When the bytes are no request.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, StreamError> {
        let mut fields = Fields(bytes);
        let mut next = || -> Option<(u32, Self)> {
            let magic = fields.u32()?;
            let (flags, kind) = (fields.u16()?, fields.u16()?);
            let (cookie, offset) = (fields.u64()?, fields.u64()?);
            Some((magic, Self { flags, kind, cookie, offset, len: fields.u32()? }))
        };
        let (magic, request) = next().expect("28 bytes hold all fields");
        if magic != REQUEST_MAGIC {
            return Err(StreamError::Magic(magic));
        }
        if request.kind == cmd::WRITE && request.len > DRAIN_MAX {
            return Err(StreamError::TooLong(request.len));
        }
        Ok(request)
    }

    /// Bytes that follow the header.
    #[must_use]
    pub const fn payload_len(&self) -> u32 {
        if self.kind == cmd::WRITE { self.len } else { 0 }
    }

    /// True when the answer is a structured reply, given that those were negotiated.
    #[must_use]
    pub const fn wants_structured(&self) -> bool {
        matches!(self.kind, cmd::READ | cmd::BLOCK_STATUS)
    }
}

/// What a connection negotiated, against which its requests are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Of the export when this connection opened it; a later one may see more.
    pub size: u64,
    pub access: Access,
    /// Replies to reads come in chunks.
    pub structured: bool,
    /// `base:allocation` was selected.
    pub block_status: bool,
}

/// A request that may be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Read {
        offset: u64,
        len: u32,
    },
    Write {
        offset: u64,
        len: u32,
        durability: Durability,
    },
    Unmap {
        offset: u64,
        len: u32,
        kind: UnmapKind,
        durability: Durability,
    },
    BlockStatus {
        offset: u64,
        len: u32,
        extents: ExtentsWanted,
    },
    Flush,
    /// Nothing to do but to say so: a zero-length request, or a hint.
    Nothing,
    Disconnect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentsWanted {
    One,
    Many,
}

impl Terms {
    /// # Errors
    /// What the client is answered instead.
    pub fn check(&self, request: &Request) -> Result<Command, Errno> {
        let Request { offset, len, .. } = *request;
        self.check_flags(request)?;
        let durability =
            if request.flags & flag::FUA == 0 { Durability::Normal } else { Durability::Durable };
        let unmap = |kind| Command::Unmap { offset, len, kind, durability };
        let command = match request.kind {
            cmd::DISC => return Ok(Command::Disconnect),
            cmd::FLUSH if offset == 0 && len == 0 => return Ok(Command::Flush),
            cmd::FLUSH => return Err(Errno::Invalid),
            cmd::READ if len > PAYLOAD_MAX && request.flags & flag::DF != 0 => {
                return Err(Errno::Overflow);
            }
            cmd::READ | cmd::WRITE if len > PAYLOAD_MAX => return Err(Errno::Invalid),
            cmd::BLOCK_STATUS if len == 0 || !self.block_status => return Err(Errno::Invalid),
            cmd::READ => Command::Read { offset, len },
            cmd::WRITE => Command::Write { offset, len, durability },
            cmd::TRIM => unmap(UnmapKind::Trim),
            cmd::WRITE_ZEROES => unmap(UnmapKind::Zero),
            // A hint: the router's caches decide by themselves what to keep.
            cmd::CACHE => Command::Nothing,
            cmd::BLOCK_STATUS if request.flags & flag::REQ_ONE == 0 => {
                Command::BlockStatus { offset, len, extents: ExtentsWanted::Many }
            }
            cmd::BLOCK_STATUS => Command::BlockStatus { offset, len, extents: ExtentsWanted::One },
            _ => return Err(Errno::Invalid),
        };
        let mutates = matches!(command, Command::Write { .. } | Command::Unmap { .. });
        if mutates && self.access == Access::ReadOnly {
            return Err(Errno::Perm);
        }
        let fits = offset.checked_add(u64::from(len)).is_some_and(|end| end <= self.size);
        match (fits, request.kind) {
            (false, cmd::WRITE | cmd::WRITE_ZEROES) => Err(Errno::NoSpace),
            (false, _) => Err(Errno::Invalid),
            (true, _) if len == 0 => Ok(Command::Nothing),
            (true, _) => Ok(command),
        }
    }

    /// FUA is legal everywhere; each other flag on its own commands only.
    fn check_flags(&self, request: &Request) -> Result<(), Errno> {
        let legal = match request.kind {
            cmd::READ if self.structured => flag::DF,
            cmd::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
            cmd::BLOCK_STATUS => flag::REQ_ONE,
            _ => 0,
        };
        if request.flags & !(legal | flag::FUA) == 0 { Ok(()) } else { Err(Errno::Invalid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TERMS: Terms =
        Terms { size: 1 << 40, access: Access::ReadWrite, structured: true, block_status: true };

    fn request(kind: u16, flags: u16, offset: u64, len: u32) -> Request {
        Request { flags, kind, cookie: 7, offset, len }
    }

    #[test]
    fn a_request_is_read_from_its_28_bytes() {
        let bytes = *b"\x25\x60\x95\x13\0\x01\0\x01abcdefgh\0\0\0\0\0\0\x10\0\0\0\x02\0";
        let parsed = Request::parse(&bytes).unwrap();
        let cookie = u64::from_be_bytes(*b"abcdefgh");
        assert_eq!(parsed, Request { flags: 1, kind: 1, cookie, offset: 4096, len: 512 });
        assert_eq!(parsed.payload_len(), 512);
        let mut bad = bytes;
        bad[0] = 0;
        assert_eq!(Request::parse(&bad), Err(StreamError::Magic(0x0060_9513)));
        let mut long = bytes;
        long[24] = 0xff;
        assert!(matches!(Request::parse(&long), Err(StreamError::TooLong(_))));
        long[7] = 0;
        assert_eq!(Request::parse(&long).unwrap().payload_len(), 0, "a read carries nothing");
    }

    #[test]
    fn impossible_requests_get_the_error_that_the_protocol_names() {
        let end = TERMS.size;
        let table = [
            (request(cmd::READ, 0, end - 1, 2), Errno::Invalid),
            (request(cmd::READ, 0, u64::MAX, 2), Errno::Invalid),
            (request(cmd::WRITE, 0, end, 1), Errno::NoSpace),
            (request(cmd::WRITE, 0, end + 1, 0), Errno::NoSpace),
            (request(cmd::WRITE_ZEROES, 0, end - 1, u32::MAX), Errno::NoSpace),
            (request(cmd::TRIM, 0, end, 1), Errno::Invalid),
            (request(cmd::CACHE, 0, end, 1), Errno::Invalid),
            (request(cmd::READ, 0, 0, PAYLOAD_MAX + 1), Errno::Invalid),
            (request(cmd::READ, flag::DF, 0, PAYLOAD_MAX + 1), Errno::Overflow),
            (request(cmd::WRITE, 0, 0, PAYLOAD_MAX + 1), Errno::Invalid),
            (request(cmd::WRITE, flag::DF, 0, 1), Errno::Invalid),
            (request(cmd::READ, flag::REQ_ONE, 0, 1), Errno::Invalid),
            (request(cmd::TRIM, flag::FAST_ZERO, 0, 1), Errno::Invalid),
            (request(cmd::READ, 1 << 9, 0, 1), Errno::Invalid),
            (request(cmd::FLUSH, 0, 1, 0), Errno::Invalid),
            (request(cmd::BLOCK_STATUS, 0, 0, 0), Errno::Invalid),
            (request(cmd::BLOCK_STATUS, 0, end, 1), Errno::Invalid),
            (request(8, 0, 0, 0), Errno::Invalid),
            (request(999, 0, 0, 1), Errno::Invalid),
        ];
        for (request, errno) in table {
            assert_eq!(TERMS.check(&request), Err(errno), "{request:?}");
        }
    }

    #[test]
    fn possible_requests_keep_what_they_asked_for() {
        let check = |kind, flags, offset, len| TERMS.check(&request(kind, flags, offset, len));
        assert_eq!(check(cmd::READ, flag::DF, 3, 5), Ok(Command::Read { offset: 3, len: 5 }));
        let durability = Durability::Durable;
        assert_eq!(
            check(cmd::WRITE, flag::FUA, 1, PAYLOAD_MAX),
            Ok(Command::Write { offset: 1, len: PAYLOAD_MAX, durability })
        );
        let all = flag::FUA | flag::NO_HOLE | flag::FAST_ZERO;
        assert_eq!(
            check(cmd::WRITE_ZEROES, all, 0, u32::MAX),
            Ok(Command::Unmap { offset: 0, len: u32::MAX, kind: UnmapKind::Zero, durability })
        );
        for kind in [cmd::READ, cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES, cmd::CACHE] {
            assert_eq!(check(kind, 0, TERMS.size, 0), Ok(Command::Nothing), "empty, at the end");
        }
        assert_eq!(check(cmd::FLUSH, flag::FUA, 0, 0), Ok(Command::Flush));
        let one = ExtentsWanted::One;
        assert_eq!(
            check(cmd::BLOCK_STATUS, flag::REQ_ONE, 0, 1),
            Ok(Command::BlockStatus { offset: 0, len: 1, extents: one })
        );
    }

    #[test]
    fn a_read_only_export_refuses_every_change() {
        let terms = Terms { access: Access::ReadOnly, ..TERMS };
        for kind in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES] {
            assert_eq!(terms.check(&request(kind, 0, 0, 1)), Err(Errno::Perm));
        }
        assert!(terms.check(&request(cmd::READ, 0, 0, 1)).is_ok());
        assert_eq!(terms.check(&request(cmd::FLUSH, 0, 0, 0)), Ok(Command::Flush));
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        let terms = Terms { structured: false, block_status: false, ..TERMS };
        assert_eq!(terms.check(&request(cmd::READ, flag::DF, 0, 1)), Err(Errno::Invalid));
        assert_eq!(terms.check(&request(cmd::BLOCK_STATUS, 0, 0, 1)), Err(Errno::Invalid));
    }

    proptest! {
        #[test]
        fn what_passes_lies_inside_the_export(bytes: [u8; 24], size: u64) {
            let mut header = [0; HEADER_LEN];
            header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            header[4..].copy_from_slice(&bytes);
            header[6] = 0;
            header[7] %= 9;
            let Ok(request) = Request::parse(&header) else { return Ok(()) };
            let terms = Terms { size, ..TERMS };
            if let Ok(Command::Read { offset, len } | Command::Write { offset, len, .. }
                | Command::Unmap { offset, len, .. } | Command::BlockStatus { offset, len, .. }) =
                terms.check(&request)
            {
                prop_assert!(offset.checked_add(len.into()).unwrap() <= size);
            }
        }
    }
}
