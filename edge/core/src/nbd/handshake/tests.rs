//! Negotiations, polite and otherwise.

use super::*;
use proptest::prelude::*;

struct Client {
    handshake: Handshake,
    input: BytesMut,
    out: BytesMut,
}

fn export() -> Export {
    Export {
        name: "demo".to_owned(),
        description: "a vDisk".to_owned(),
        size: 1 << 30,
        access: Access::ReadWrite,
    }
}

impl Client {
    fn new(flags: u32) -> Self {
        let mut out = BytesMut::new();
        let handshake = Handshake::begin(&mut out);
        assert_eq!(&out[..], b"NBDMAGICIHAVEOPT\0\x03");
        out.clear();
        let mut input = BytesMut::new();
        input.put_u32(flags);
        Self { handshake, input, out }
    }

    fn option(&mut self, option: u32, data: &[u8]) -> Result<Step, HandshakeError> {
        self.input.put_u64(OPTION_MAGIC);
        self.input.put_u32(option);
        self.input.put_u32(model::u32_of(data.len()));
        self.input.put_slice(data);
        self.handshake.advance(&mut self.input, &mut self.out)
    }

    /// Replies so far as (option, kind, data).
    fn replies(&mut self) -> Vec<(u32, u32, Vec<u8>)> {
        let mut list = Vec::new();
        while !self.out.is_empty() {
            assert_eq!(self.out.get_u64(), OPTION_REPLY_MAGIC);
            let (option, kind, len) = (self.out.get_u32(), self.out.get_u32(), self.out.get_u32());
            list.push((option, kind, self.out.split_to(len as usize).to_vec()));
        }
        list
    }

    fn only_reply(&mut self) -> (u32, u32) {
        let replies = self.replies();
        assert_eq!(replies.len(), 1, "{replies:?}");
        (replies[0].0, replies[0].1)
    }
}

fn named(name: &str, rest: &[u8]) -> Vec<u8> {
    let mut data = model::u32_of(name.len()).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(rest);
    data
}

fn queries(export: &str, list: &[&str]) -> Vec<u8> {
    let mut rest = model::u32_of(list.len()).to_be_bytes().to_vec();
    for query in list {
        rest.extend_from_slice(&named(query, &[]));
    }
    named(export, &rest)
}

#[test]
fn go_tells_size_flags_blocks_and_what_was_asked_for() {
    let mut client = Client::new(3);
    let wants = [0, 2, 0, 1, 0, 2];
    let step = client.option(option::GO, &named("demo", &wants)).unwrap();
    let (name, purpose) = ("demo".to_owned(), Purpose::Open);
    assert_eq!(step, Step::Ask(Query::Export { name, purpose }));
    let step = client.handshake.answer_export(Ok(export()), &mut client.out).unwrap();
    assert_eq!(
        step,
        Step::Begin(Terms {
            size: 1 << 30,
            access: Access::ReadWrite,
            structured: false,
            block_status: false
        })
    );
    let replies = client.replies();
    let data: Vec<&[u8]> = replies.iter().map(|(_, _, data)| &data[..]).collect();
    assert_eq!(
        data,
        [
            &b"\0\0\0\0\0\0\x40\0\0\0\x0d\xed"[..],
            b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0",
            b"\0\x01demo",
            b"\0\x02a vDisk",
            b"",
        ]
    );
    assert!(replies[..4].iter().all(|r| (r.0, r.1) == (option::GO, reply::INFO)));
    assert_eq!(replies[4].1, reply::ACK);
}

#[test]
fn info_leaves_the_client_negotiating() {
    let mut client = Client::new(3);
    client.option(option::INFO, &named("", &[0, 0])).unwrap();
    let step = client.handshake.answer_export(Ok(export()), &mut client.out).unwrap();
    assert_eq!(step, Step::Wait);
    assert_eq!(client.replies().len(), 3);
    assert_eq!(client.option(option::ABORT, &[]), Ok(Step::Close));
    assert_eq!(client.only_reply(), (option::ABORT, reply::ACK));
}

#[test]
fn refusals_reach_the_user_with_their_reason() {
    let refusals = [
        (Refusal::Unknown("no such vDisk".to_owned()), reply::ERR_UNKNOWN),
        (Refusal::Denied("held by edge-2".to_owned()), reply::ERR_POLICY),
        (Refusal::Unavailable("no router answers".to_owned()), reply::ERR_SHUTDOWN),
    ];
    for (refusal, kind) in refusals {
        let mut client = Client::new(3);
        client.option(option::GO, &named("demo", &[0, 0])).unwrap();
        let text = refusal.text().to_owned();
        let step = client.handshake.answer_export(Err(refusal), &mut client.out).unwrap();
        assert_eq!(step, Step::Wait);
        assert_eq!(client.replies(), [(option::GO, kind, text.into_bytes())]);
    }
}

#[test]
fn export_name_pads_unless_told_not_to() {
    for (flags, len) in [(1, 134), (3, 10)] {
        let mut client = Client::new(flags);
        client.option(option::EXPORT_NAME, b"demo").unwrap();
        let step = client.handshake.answer_export(Ok(export()), &mut client.out).unwrap();
        assert!(matches!(step, Step::Begin(_)));
        assert_eq!(client.out.len(), len);
        assert_eq!(&client.out[..10], b"\0\0\0\0\x40\0\0\0\x0d\xed");
    }
    let mut client = Client::new(3);
    client.option(option::EXPORT_NAME, b"demo").unwrap();
    let refusal = Refusal::Unknown("gone".to_owned());
    assert!(client.handshake.answer_export(Err(refusal), &mut client.out).is_err());
}

#[test]
fn lists_name_every_export() {
    let mut client = Client::new(3);
    assert_eq!(client.option(option::LIST, &[]), Ok(Step::Ask(Query::List)));
    client.handshake.answer_list(Ok(vec!["a".to_owned(), "bc".to_owned()]), &mut client.out);
    let replies = client.replies();
    assert_eq!(replies[0], (option::LIST, reply::SERVER, b"\0\0\0\x01a".to_vec()));
    assert_eq!(replies[1], (option::LIST, reply::SERVER, b"\0\0\0\x02bc".to_vec()));
    assert_eq!(replies[2].1, reply::ACK);
    client.option(option::LIST, b"x").unwrap();
    assert_eq!(client.only_reply(), (option::LIST, reply::ERR_INVALID));
}

#[test]
fn block_status_needs_structured_replies_the_context_and_the_same_export() {
    let set = |client: &mut Client, list: &[&str]| {
        client.option(option::SET_META_CONTEXT, &queries("demo", list)).unwrap();
        client.handshake.answer_export(Ok(export()), &mut client.out).unwrap();
        client.replies()
    };
    let go = |client: &mut Client, name: &str| {
        client.option(option::GO, &named(name, &[0, 0])).unwrap();
        match client.handshake.answer_export(Ok(export()), &mut client.out).unwrap() {
            Step::Begin(terms) => terms.block_status,
            step @ (Step::Wait | Step::Ask(_) | Step::Close) => panic!("{step:?}"),
        }
    };
    let mut client = Client::new(3);
    client.option(option::SET_META_CONTEXT, &queries("demo", &["base:allocation"])).unwrap();
    assert_eq!(client.only_reply(), (option::SET_META_CONTEXT, reply::ERR_INVALID));

    client.option(option::STRUCTURED_REPLY, &[]).unwrap();
    assert_eq!(client.only_reply(), (option::STRUCTURED_REPLY, reply::ACK));
    let told = set(&mut client, &["other:thing", "base:allocation"]);
    assert_eq!(told[0].2, b"\0\0\0\x01base:allocation");
    assert_eq!(told[1].1, reply::ACK);
    assert!(go(&mut client, "demo"));

    // A later selection replaces the earlier; a wildcard or none selects nothing; another export has its own.
    for (second, name) in [(&["base:"][..], "demo"), (&[], "demo"), (&["base:allocation"], "else")]
    {
        let mut client = Client::new(3);
        client.option(option::STRUCTURED_REPLY, &[]).unwrap();
        client.replies();
        set(&mut client, &["base:allocation"]);
        set(&mut client, second);
        assert!(!go(&mut client, name), "{second:?} {name}");
    }
}

#[test]
fn contexts_are_listed_by_none_by_namespace_and_by_name() {
    for (list, count) in
        [(&[][..], 2), (&["base:"], 2), (&["base:allocation"], 2), (&["x:"], 1), (&["base"], 1)]
    {
        let mut client = Client::new(3);
        client.option(option::STRUCTURED_REPLY, &[]).unwrap();
        client.replies();
        client.option(option::LIST_META_CONTEXT, &queries("", list)).unwrap();
        client.handshake.answer_export(Ok(export()), &mut client.out).unwrap();
        let replies = client.replies();
        assert_eq!(replies.len(), count, "{list:?}");
        assert_eq!(replies[count - 1].1, reply::ACK);
    }
}

#[test]
fn odd_options_are_answered_and_the_next_one_works() {
    let mut client = Client::new(3);
    let long = vec![0; 40 << 10];
    let table: [(u32, &[u8], u32); 10] = [
        (option::STARTTLS, &[], reply::ERR_UNSUP),
        (11, &[], reply::ERR_UNSUP),
        (0xffff_ffff, b"what", reply::ERR_UNSUP),
        (option::GO, &long, reply::ERR_TOO_BIG),
        (option::GO, b"", reply::ERR_INVALID),
        (option::GO, &named("demo", &[0, 9]), reply::ERR_INVALID),
        (option::GO, &[0xff, 0xff, 0xff, 0xff, 1], reply::ERR_INVALID),
        (option::INFO, &named("bad name", &[0, 0]), reply::ERR_UNKNOWN),
        (option::GO, &named("demo@monday", &[0, 0]), reply::ERR_POLICY),
        (option::STRUCTURED_REPLY, b"x", reply::ERR_INVALID),
    ];
    for (option, data, kind) in table {
        assert_eq!(client.option(option, data), Ok(Step::Wait));
        assert_eq!(client.only_reply(), (option, kind));
    }
    client.option(option::STRUCTURED_REPLY, &[]).unwrap();
    assert_eq!(client.only_reply(), (option::STRUCTURED_REPLY, reply::ACK));
}

#[test]
fn hopeless_clients_are_dropped() {
    assert!(matches!(
        Client::new(4).option(option::ABORT, &[]),
        Err(HandshakeError::ClientFlags(4))
    ));
    let mut client = Client::new(3);
    client.input.put_slice(b"GET / HTTP/1.1\r\n\r\n");
    let step = client.handshake.advance(&mut client.input, &mut client.out);
    assert_eq!(step, Err(HandshakeError::OptionMagic));
    let mut client = Client::new(3);
    client.input.put_u64(OPTION_MAGIC);
    client.input.put_u32(option::LIST);
    client.input.put_u32(u32::MAX);
    let step = client.handshake.advance(&mut client.input, &mut client.out);
    assert_eq!(step, Err(HandshakeError::OptionTooLong(u32::MAX)));
    let mut client = Client::new(3);
    let end = (0..=OPTIONS_MAX).find_map(|_| client.option(99, &[]).err());
    assert_eq!(end, Some(HandshakeError::TooManyOptions));
}

proptest! {
    /// However the bytes are cut into packets, the answers are the same; and garbage never panics.
    #[test]
    fn packet_borders_do_not_matter(
        options in prop::collection::vec((0u32..13, prop::collection::vec(any::<u8>(), 0..40)), 0..8),
        cuts in prop::collection::vec(1usize..9, 1..20),
    ) {
        let mut stream = BytesMut::new();
        stream.put_u32(3);
        for (option, data) in &options {
            stream.put_u64(OPTION_MAGIC);
            stream.put_u32(*option);
            stream.put_u32(model::u32_of(data.len()));
            stream.put_slice(data);
        }
        let run = |sizes: &[usize]| {
            let (mut out, mut input, mut left) = (BytesMut::new(), BytesMut::new(), stream.clone());
            let mut handshake = Handshake::begin(&mut out);
            for size in sizes.iter().cycle() {
                let now = (*size).min(left.len());
                input.unsplit(left.split_to(now));
                loop {
                    match handshake.advance(&mut input, &mut out) {
                        Ok(Step::Ask(Query::List)) => handshake.answer_list(Ok(vec![]), &mut out),
                        Ok(Step::Ask(Query::Export { .. })) => {
                            match handshake.answer_export(Ok(export()), &mut out) {
                                Ok(Step::Wait) => {}
                                other => return (out, format!("{other:?}")),
                            }
                        }
                        Ok(Step::Wait) => break,
                        other => return (out, format!("{other:?}")),
                    }
                }
                if left.is_empty() {
                    break;
                }
            }
            (out, "waits".to_owned())
        };
        prop_assert_eq!(run(&[usize::MAX]), run(&cuts));
    }
}
