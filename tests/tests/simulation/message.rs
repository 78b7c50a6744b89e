//! What the nodes of the simulated cluster say to each other.
//!
//! Invariant: an answer names the call it answers, so late and repeated ones are told apart.

use std::rc::Rc;

use asd_core::store::{Op, Outcome};
use bytes::Bytes;
use edge_core::session::{Answer, CallKey, Failure, Request};
use model::{AttachmentGeneration, ObjectId};
use router_core::tlog::Meta;
use sim::NodeId;
use wire::router::Attached;

use super::register::{self, Transaction};

pub const USER: NodeId = NodeId(0);
pub const EDGE: NodeId = NodeId(1);
pub const ROUTER: NodeId = NodeId(2);
pub const ARAKOON: NodeId = NodeId(3);
pub const PROXIES: [NodeId; 2] = [NodeId(4), NodeId(5)];
/// The first ASD; the others follow.
pub const ASDS: u32 = 10;

/// What the router asks to be stored.
#[derive(Debug, Clone)]
pub struct Put {
    pub object: ObjectId,
    pub expected_head: Option<ObjectId>,
    pub meta: Meta,
    pub payload: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// A later epoch is recorded (L4).
    Fenced,
    /// Its predecessor isn't the head.
    WrongHead,
    /// Not now, or not known.
    Unavailable,
}

#[derive(Debug, Clone)]
pub enum Message {
    Attach {
        link: u64,
        reclaim: Option<AttachmentGeneration>,
    },
    Attached {
        link: u64,
        answer: Option<Attached>,
    },
    /// `number`: its place in what the connection carries in this direction.
    Request {
        link: u64,
        number: u64,
        key: CallKey,
        request: Request,
    },
    Answer {
        link: u64,
        number: u64,
        key: CallKey,
        result: Result<Answer, Failure>,
    },
    Put(Put),
    PutAnswer {
        object: ObjectId,
        result: Result<(), Refused>,
    },
    Fragment {
        call: u64,
        op: Rc<Op>,
    },
    FragmentDone {
        call: u64,
        outcome: Outcome,
    },
    Transact {
        call: u64,
        transaction: Rc<Transaction>,
    },
    Transacted {
        call: u64,
        answer: register::Answer,
    },
}
