//! The executions that the rules were made for, one by one.

mod put_off;

use super::*;
use wire::router::{AppliedSequences, Attached};

/// A session with the router played by hand.
struct Play {
    session: Session<u32>,
    now: Now,
    calls: Vec<(CallKey, Request)>,
    replies: Vec<(u32, Result<Outcome, IoError>)>,
    relinks: usize,
    lost: Vec<RequestSeq>,
}

impl Play {
    fn new(settings: Settings) -> Self {
        let session = Session::new(settings, 1);
        let now = Now(Duration::from_secs(100));
        let (calls, replies, lost) = (Vec::new(), Vec::new(), Vec::new());
        Self { session, now, calls, replies, relinks: 0, lost }
    }

    /// Attached to a fresh vDisk and live.
    fn live() -> Self {
        Self::live_with(Settings::default())
    }

    fn live_with(settings: Settings) -> Self {
        let mut play = Self::new(settings);
        play.attach(1, &[]);
        play.finish_replay();
        play
    }

    fn settle(&mut self) {
        let effects: Vec<_> = self.session.effects(self.now).collect();
        for effect in effects {
            match effect {
                Effect::Call { key, request } => self.calls.push((key, request)),
                Effect::Reply { ticket, result } => self.replies.push((ticket, result)),
                Effect::Relink { .. } => {
                    self.relinks += 1;
                    self.calls.clear();
                }
                Effect::Event(Event::ReplayRefused { seq, .. }) => self.lost.push(seq),
                Effect::Event(_) => {}
            }
        }
    }

    /// At the owner of this epoch, where these sequences are applied.
    fn attach(&mut self, epoch: u64, applied: &[u64]) {
        self.calls.clear();
        let mut contiguous = 0;
        while applied.contains(&(contiguous + 1)) {
            contiguous += 1;
        }
        let above = applied.iter().filter(|seq| **seq > contiguous).map(|seq| RequestSeq(*seq));
        let answer = Attached {
            vdisk: VdiskId(1),
            generation: AttachmentGeneration(1),
            epoch: Epoch(epoch),
            incarnation: Incarnation(epoch),
            size_bytes: 1 << 30,
            applied: AppliedSequences {
                contiguous: RequestSeq(contiguous),
                above: above.collect(),
            },
            last_lsn: Lsn(0),
        };
        self.session.attached(self.now, &answer).unwrap();
        self.settle();
    }

    fn finish_replay(&mut self) {
        let key = self.take(|request| matches!(request, Request::ReplayComplete(_)));
        self.answer(key, Ok(Answer::Done));
    }

    fn submit(&mut self, op: Op, ticket: u32) {
        self.session.submit(self.now, op, ticket);
        self.settle();
    }

    fn write(&mut self, ticket: u32, offset: u64, durability: Durability) {
        let data = Bytes::from(vec![u8::try_from(ticket).unwrap(); 100]);
        self.submit(Op::Write { offset, data, checksums: vec![0], durability }, ticket);
    }

    fn take(&mut self, which: impl Fn(&Request) -> bool) -> CallKey {
        let at = self.calls.iter().position(|(_, request)| which(request));
        let at = at.unwrap_or_else(|| panic!("not among {:?}", self.calls));
        self.calls.remove(at).0
    }

    fn take_write(&mut self, seq: u64) -> CallKey {
        self.take(|request| matches!(request, Request::Write(write, _) if write.seq.0 == seq))
    }

    fn take_flush(&mut self) -> CallKey {
        self.take(|request| matches!(request, Request::Flush(_)))
    }

    fn answer(&mut self, key: CallKey, result: Result<Answer, Failure>) {
        self.session.answered(self.now, key, result);
        self.settle();
    }

    fn applied(&mut self, seq: u64, epoch: u64, lsn: u64) {
        let key = self.take_write(seq);
        self.answer(key, Ok(Answer::Applied { epoch: Epoch(epoch), lsn: Lsn(lsn) }));
    }

    fn flushed(&mut self, key: CallKey, epoch: u64, lsn: u64) {
        self.answer(key, Ok(Answer::Flushed { epoch: Epoch(epoch), lsn: Lsn(lsn) }));
    }

    /// Sequences of the writes and unmaps under way, in the order in which they were sent.
    fn under_way(&self) -> Vec<u64> {
        let seq = |request: &Request| match request {
            Request::Write(write, _) => Some(write.seq.0),
            Request::Unmap(unmap) => Some(unmap.seq.0),
            Request::Read(_)
            | Request::Flush(_)
            | Request::BlockStatus(_)
            | Request::ReplayComplete(_) => None,
        };
        self.calls.iter().filter_map(|(_, request)| seq(request)).collect()
    }

    fn later(&mut self, length: Duration) {
        self.now = self.now.plus(length);
        self.session.tick(self.now);
        self.settle();
    }
}

const NORMAL: Durability = Durability::Normal;
const FUA: Durability = Durability::Durable;

/// "A flush covering LSN ≤ 10 is sent, write 11 is acked, the flush ack arrives, the edge drops 11, the owner dies."
#[test]
fn p2_a_flush_ack_forgets_only_what_it_covers() {
    let mut play = Play::live();
    play.write(1, 0, NORMAL);
    play.applied(1, 1, 10);
    play.submit(Op::Flush, 2);
    let flush = play.take_flush();
    play.write(3, 1000, NORMAL);
    play.applied(2, 1, 11);
    play.flushed(flush, 1, 10);
    assert_eq!(play.replies.len(), 3);
    play.attach(2, &[1]);
    assert_eq!(play.under_way(), [2], "the write that no flush covers is replayed");
}

#[test]
fn p5_who_shares_a_vdisk_sends_nothing_again_that_was_acknowledged() {
    let mut play = Play::live_with(Settings { shared: true, ..Settings::default() });
    play.write(1, 0, NORMAL);
    play.applied(1, 1, 10);
    assert_eq!(play.replies, [(1, Ok(Outcome::Done))]);
    play.write(2, 5000, NORMAL);
    play.write(3, 9000, NORMAL);
    // The next owner has the second, and lacks the first: another edge may have written there since.
    play.attach(2, &[2]);
    assert_eq!(play.under_way(), [3]);
    play.applied(3, 2, 12);
    play.finish_replay();
    // It may be at one place only.
    assert!(!play.replies.contains(&(2, Ok(Outcome::Done))));
    let flush = play.take_flush();
    play.flushed(flush, 2, 12);
    assert!(play.replies.contains(&(2, Ok(Outcome::Done))));
    assert!(play.session.is_quiet());
}

#[test]
fn p5_a_flush_of_one_that_shares_covers_what_it_was_told_before() {
    let mut play = Play::live_with(Settings { shared: true, ..Settings::default() });
    play.write(1, 0, NORMAL);
    play.applied(1, 1, 10);
    play.submit(Op::Flush, 2);
    let flush = play.take_flush();
    play.flushed(flush, 1, 9);
    assert_eq!(play.relinks, 1, "short of an acknowledged write");
}

/// "An unacknowledged W1 was applied and read, W2 over it was flushed, the owner dies, W1 is applied again over W2."
/// h_03.
#[test]
fn p3_an_applied_write_is_never_sent_again_over_a_later_one() {
    let mut play = Play::live();
    play.write(1, 0, NORMAL);
    play.write(2, 50, NORMAL);
    assert_eq!(play.under_way(), [1], "an overlapping one waits until the earlier is applied");
    // W1 is applied, its answer is lost with the connection; at the same owner W2 is then sent, acked and flushed.
    play.session.unlinked();
    play.attach(1, &[1]);
    assert_eq!(play.replies, [(1, Ok(Outcome::Done))], "applied is acknowledged, not sent again");
    play.finish_replay();
    assert_eq!(play.under_way(), [2]);
    play.applied(2, 1, 2);
    play.submit(Op::Flush, 3);
    let flush = play.take_flush();
    play.flushed(flush, 1, 2);
    // The owner dies; both were flushed, so both are there.
    play.attach(2, &[1, 2]);
    assert_eq!(play.under_way(), [0; 0]);
    play.finish_replay();
    assert!(play.session.is_quiet());
}

/// h_03.
#[test]
fn p3_overlapping_changes_are_replayed_one_after_the_other() {
    let mut play = Play::live();
    for (ticket, offset) in [(1, 0), (2, 5000), (3, 50)] {
        play.write(ticket, offset, NORMAL);
        let lsn = ticket.into();
        play.applied(lsn, 1, lsn);
    }
    play.attach(2, &[]);
    assert_eq!(
        play.under_way(),
        [1],
        "the router may refuse for now what covers a cluster in part"
    );
    // A passing failure of the first must not let another overtake it.
    let first = play.take_write(1);
    play.answer(first, Err(Failure::Retry));
    assert_eq!(play.under_way(), []);
    play.later(Duration::from_secs(1));
    assert_eq!(play.under_way(), [1]);
    play.applied(1, 2, 1);
    assert_eq!(play.under_way(), [2]);
    play.applied(2, 2, 2);
    assert_eq!(play.under_way(), [3]);
    assert_eq!(play.replies.len(), 3, "nothing is answered twice");
}

#[test]
fn p3_no_change_is_replayed_before_an_earlier_one() {
    let mut play = Play::live();
    for (ticket, cluster) in [(1, 0), (2, 1), (3, 1), (4, 2)] {
        let (offset, data) = (cluster * 4096, Bytes::from(vec![1; 4096]));
        let (checksums, durability) = (vec![0], NORMAL);
        play.submit(Op::Write { offset, data, checksums, durability }, ticket);
        play.applied(ticket.into(), 1, ticket.into());
    }
    play.attach(2, &[]);
    assert_eq!(play.under_way(), [1, 2], "3 overlaps 2, and 4 came after 3");
    play.applied(2, 2, 1);
    assert_eq!(play.under_way(), [1, 3, 4]);
}

#[test]
fn p6_nothing_but_replay_goes_out_before_its_end_is_declared() {
    let mut play = Play::live();
    play.write(1, 0, NORMAL);
    play.applied(1, 1, 1);
    play.attach(2, &[]);
    play.submit(Op::Read { offset: 0, len: 10 }, 2);
    play.submit(Op::Flush, 3);
    play.write(4, 9000, NORMAL);
    assert_eq!(play.calls.len(), 1, "only the replayed write: {:?}", play.calls);
    play.applied(1, 2, 1);
    assert_eq!(play.calls.len(), 1, "only its end: {:?}", play.calls);
    play.finish_replay();
    assert_eq!(play.calls.len(), 3);
}

#[test]
fn a_durable_write_found_applied_is_acknowledged_only_after_a_flush() {
    let mut play = Play::live();
    play.write(1, 0, FUA);
    play.session.unlinked();
    play.attach(1, &[1]);
    play.finish_replay();
    assert_eq!(play.replies, [], "applied isn't durable (L2)");
    let flush = play.take_flush();
    play.flushed(flush, 1, 5);
    assert_eq!(play.replies, [(1, Ok(Outcome::Done))]);
    assert!(play.session.is_quiet());
}

#[test]
fn a_flush_under_way_at_a_cut_is_sent_again_after_replay() {
    let mut play = Play::live();
    play.write(1, 0, NORMAL);
    play.applied(1, 1, 7);
    play.submit(Op::Flush, 2);
    let stale = play.take_flush();
    play.attach(2, &[]);
    play.applied(1, 2, 7);
    // The old owner's answer comes late: it means nothing any more.
    play.flushed(stale, 1, 7);
    assert_eq!(play.replies.len(), 1);
    play.finish_replay();
    let flush = play.take_flush();
    play.flushed(flush, 2, 7);
    assert_eq!(play.replies[1], (2, Ok(Outcome::Done)));
}

#[test]
fn entries_that_a_new_owner_recovered_stay_until_it_flushed() {
    let mut play = Play::live();
    play.write(1, 0, NORMAL);
    play.applied(1, 1, 7);
    play.attach(2, &[1]);
    play.finish_replay();
    // It had them in memory only, and dies too.
    play.attach(3, &[]);
    assert_eq!(play.under_way(), [1]);
}

#[test]
fn an_owner_that_is_over_is_passed_by() {
    let mut play = Play::live();
    play.attach(5, &[]);
    let answer = Attached {
        vdisk: VdiskId(1),
        generation: AttachmentGeneration(1),
        epoch: Epoch(4),
        incarnation: Incarnation(4),
        size_bytes: 0,
        applied: AppliedSequences { contiguous: RequestSeq(0), above: Vec::new() },
        last_lsn: Lsn(0),
    };
    assert_eq!(play.session.attached(play.now, &answer), Err(AttachError::StaleEpoch));
    let other = Attached { generation: AttachmentGeneration(2), epoch: Epoch(9), ..answer };
    play.write(1, 0, NORMAL);
    assert_eq!(play.session.attached(play.now, &other), Err(AttachError::Fenced));
    play.settle();
    assert_eq!(play.replies, [(1, Err(IoError::Io))], "a fenced edge fails its I/O (P4)");
    play.write(2, 0, NORMAL);
    assert_eq!(play.replies.len(), 2);
}

#[test]
fn a_flush_short_of_what_was_acknowledged_is_not_believed() {
    let mut play = Play::live();
    play.write(1, 0, NORMAL);
    play.applied(1, 1, 9);
    play.submit(Op::Flush, 2);
    let flush = play.take_flush();
    play.flushed(flush, 1, 8);
    assert_eq!((play.relinks, play.replies.len()), (1, 1));
}

#[test]
fn a_refused_write_uses_up_its_number() {
    let mut play = Play::live();
    play.write(1, 0, NORMAL);
    let call = play.take_write(1);
    play.answer(call, Err(Failure::Refused(IoError::OutOfRange)));
    assert_eq!(play.replies, [(1, Err(IoError::OutOfRange))]);
    let void = play.take(
        |request| matches!(request, Request::Unmap(unmap) if unmap.seq.0 == 1 && unmap.len == 0),
    );
    play.answer(void, Ok(Answer::Applied { epoch: Epoch(1), lsn: Lsn(1) }));
    play.write(2, 0, NORMAL);
    assert_eq!(play.under_way(), [2]);
    assert_eq!(play.lost, []);
}

#[test]
fn an_acknowledged_write_that_cannot_be_replayed_is_reported() {
    let mut play = Play::live();
    play.write(1, 0, NORMAL);
    play.applied(1, 1, 1);
    play.attach(2, &[]);
    let call = play.take_write(1);
    play.answer(call, Err(Failure::Unreadable));
    assert_eq!(play.lost, [], "a passing reason is waited out (L1)");
    play.later(Duration::from_secs(2));
    let call = play.take_write(1);
    play.answer(call, Err(Failure::Refused(IoError::OutOfRange)));
    assert_eq!(play.lost, [RequestSeq(1)]);
}

/// Answers "unreadable" each time it is asked, and returns how long it took until the user was told.
fn given_up_after(play: &mut Play, which: impl Fn(&Request) -> bool) -> Duration {
    let (start, told) = (play.now, play.replies.len());
    while play.replies.len() == told {
        let key = play.take(&which);
        play.answer(key, Err(Failure::Unreadable));
        if play.replies.len() == told {
            play.later(Duration::from_secs(1));
        }
        assert!(play.now.since(start) < Duration::from_secs(60), "tried for ever");
    }
    play.now.since(start)
}

#[test]
fn patience_with_what_cant_be_read_begins_when_that_is_said() {
    let patience = Settings::default().unreadable_patience;
    let enough = patience..patience + Duration::from_secs(2);
    let mut play = Play::live();
    let is_read = |request: &Request| matches!(request, Request::Read(_));
    let is_write = |request: &Request| matches!(request, Request::Write(..));
    play.submit(Op::Read { offset: 0, len: 4096 }, 1);
    play.write(2, 8192, NORMAL);
    // An owner that dies, and one that recovers: longer than the patience.
    play.later(patience);
    play.attach(2, &[]);
    play.later(patience);
    let write = play.take(is_write);
    play.answer(write, Err(Failure::Unreadable));
    assert_eq!(play.replies, [], "a write has patience too");
    play.later(patience);
    let write = play.take(is_write);
    play.answer(write, Err(Failure::Retry));
    play.later(patience);
    // Others were the reason since.
    assert!(enough.contains(&given_up_after(&mut play, is_write)));
    assert_eq!(play.replies.pop(), Some((2, Err(IoError::Io))));
    let void = play.take(|request| matches!(request, Request::Unmap(unmap) if unmap.len == 0));
    play.answer(void, Ok(Answer::Applied { epoch: Epoch(2), lsn: Lsn(1) }));
    play.finish_replay();
    assert!(enough.contains(&given_up_after(&mut play, is_read)));
    assert_eq!(play.replies.pop(), Some((1, Err(IoError::Io))));
}

#[test]
fn the_log_is_bounded_and_flushes_itself() {
    let mut play =
        Play::live_with(Settings { log_bytes: 4000, log_entries: 100, ..Settings::default() });
    for ticket in 1..=20 {
        play.write(ticket, u64::from(ticket) * 4096, NORMAL);
    }
    assert_eq!(play.under_way().len(), 11, "4000 bytes hold eleven writes of 100 with their cost");
    for seq in 1..=8 {
        play.applied(seq, 1, seq);
    }
    assert!(play.session.stats().log_bytes <= 4000);
    let flush = play.take_flush();
    play.flushed(flush, 1, 8);
    assert_eq!(play.under_way().len(), 3 + 8, "there is room again");
}

#[test]
fn unflushed_writes_are_flushed_after_a_while() {
    let mut play = Play::live();
    play.write(1, 0, NORMAL);
    play.applied(1, 1, 1);
    play.later(Duration::from_secs(2));
    assert_eq!(play.calls, []);
    play.later(Duration::from_secs(2));
    let flush = play.take_flush();
    play.flushed(flush, 1, 1);
    assert!(play.session.is_quiet());
    assert_eq!(play.session.next_wake(), None, "an idle session sleeps");
}

#[test]
fn flushes_share_a_call_and_cover_what_was_answered_before_them() {
    let mut play = Play::live();
    for ticket in 0..FLUSHES_MAX + 10 {
        play.submit(Op::Flush, u32::try_from(ticket).unwrap());
    }
    assert_eq!(play.calls.len(), FLUSHES_MAX);
    for _ in 0..FLUSHES_MAX {
        let flush = play.take_flush();
        play.flushed(flush, 1, 0);
    }
    assert_eq!(play.calls.len(), 1, "the other ten share one");
    let flush = play.take_flush();
    play.flushed(flush, 1, 0);
    assert_eq!(play.replies.len(), FLUSHES_MAX + 10);
}

/// h_04.
#[test]
fn with_a_deadline_a_request_fails_but_keeps_its_place() {
    let io_deadline = Some(Duration::from_secs(5));
    let mut play = Play::live_with(Settings { io_deadline, ..Settings::default() });
    play.write(1, 0, NORMAL);
    play.session.unlinked();
    play.write(2, 0, NORMAL);
    play.later(Duration::from_secs(6));
    assert_eq!(play.replies, [(1, Err(IoError::Io)), (2, Err(IoError::Io))]);
    play.attach(2, &[]);
    assert_eq!(play.under_way(), [1], "what was sent may be applied: it is sent again, in order");
    play.applied(1, 2, 1);
    play.finish_replay();
    assert_eq!(play.under_way(), [0; 0], "what was never sent never will be");
    assert_eq!(play.replies.len(), 2);
}

#[test]
fn long_requests_are_cut_at_clusters_and_answered_once() {
    let mut play = Play::live();
    let len = 10 << 20;
    play.submit(Op::Read { offset: 100, len }, 1);
    let reads: Vec<(u64, u32)> = play
        .calls
        .iter()
        .filter_map(|(_, request)| {
            let Request::Read(read) = request else { return None };
            Some((read.offset, read.len))
        })
        .collect();
    assert_eq!(reads, [(100, (4 << 20) - 100), (4 << 20, 4 << 20), (8 << 20, (2 << 20) + 100)]);
    for (_, len) in reads.into_iter().rev() {
        let key = play.take(|request| matches!(request, Request::Read(read) if read.len == len));
        play.answer(key, Ok(Answer::Data(Bytes::from(vec![1; len as usize]))));
    }
    let Some((1, Ok(Outcome::Data(parts)))) = play.replies.first() else { panic!("one answer") };
    assert_eq!(parts.iter().map(Bytes::len).collect::<Vec<_>>()[0], (4 << 20) - 100);

    let data = Bytes::from(vec![9; 9 << 20]);
    let checksums = vec![0; 2305];
    play.submit(Op::Write { offset: 1, data, checksums, durability: NORMAL }, 2);
    assert_eq!(play.under_way(), [1, 2, 3]);
    for (seq, clusters) in [(1, 1024), (2, 1024), (3, 257)] {
        let (_, Request::Write(write, _)) = &play.calls[0] else { panic!("a write") };
        assert_eq!(write.checksums.len(), clusters);
        play.applied(seq, 1, seq);
    }
    assert_eq!(play.replies[1], (2, Ok(Outcome::Done)));
}

#[test]
fn damaged_reads_are_asked_again_a_few_times_then_fail() {
    let mut play = Play::live();
    play.submit(Op::Read { offset: 0, len: 10 }, 1);
    for _ in 0..=2 {
        let read = play.take(|request| matches!(request, Request::Read(_)));
        play.answer(read, Err(Failure::Damaged));
        play.later(Duration::from_secs(1));
    }
    assert_eq!(play.replies, [(1, Err(IoError::Io))]);
    assert_eq!(play.session.stats().damaged, 3);
}

#[test]
fn numbers_of_an_attachment_never_run_ahead_of_what_a_router_remembers() {
    let mut play = Play::live();
    for at in 0..INFLIGHT_MAX_FOR_TEST + 50 {
        let data = Bytes::from_static(b"x");
        let op = Op::Write { offset: at * 4096, data, checksums: vec![0], durability: NORMAL };
        play.submit(op, 0);
    }
    // The first stays unanswered, all others are applied: still nothing further than the window is sent.
    for seq in 2..=INFLIGHT_MAX_FOR_TEST {
        play.applied(seq, 1, seq);
    }
    assert_eq!(play.under_way(), [1]);
    play.applied(1, 1, 1);
    assert_eq!(play.under_way().len(), 50);
}

const INFLIGHT_MAX_FOR_TEST: u64 = wire::router::INFLIGHT_MAX as u64;

#[test]
fn what_was_asked_and_how_long_it_took_is_counted_when_it_is_answered() {
    let mut play = Play::live();
    play.write(1, 0, Durability::Normal);
    play.submit(Op::Flush, 2);
    play.now = play.now.plus(Duration::from_millis(30));
    play.applied(1, 1, 1);
    let stats = play.session.stats();
    assert_eq!((stats.writes.count, stats.writes.bytes, stats.flushes.count), (1, 100, 0));
    assert_eq!(stats.writes.longest, Duration::from_millis(30));
    let key = play.take_flush();
    play.now = play.now.plus(Duration::from_millis(10));
    play.answer(key, Ok(Answer::Flushed { epoch: Epoch(1), lsn: Lsn(1) }));
    play.submit(Op::Flush, 3);
    let key = play.take_flush();
    play.answer(key, Ok(Answer::Flushed { epoch: Epoch(1), lsn: Lsn(1) }));
    let flushes = play.session.stats().flushes;
    assert_eq!((flushes.count, flushes.bytes), (2, 0));
    assert_eq!(
        (flushes.waited, flushes.longest),
        (Duration::from_millis(40), Duration::from_millis(40))
    );
}
