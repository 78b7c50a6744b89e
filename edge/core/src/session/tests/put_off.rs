//! A router that answers "later" to everything is left like one that is silent (P19).

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a router waits itself before it says so.
const ROUTER_WAITS: Duration = Duration::from_secs(2);

fn play() -> Play {
    Play::live_with(Settings { call_timeout: TIMEOUT, ..Settings::default() })
}

/// Lets the router put off what is asked, each time after this long, until it is left; says how long that took.
fn left_after(play: &mut Play, router_waits: Duration) -> Duration {
    let (start, before) = (play.now, play.relinks);
    while play.relinks == before {
        play.later(router_waits);
        for (key, _) in std::mem::take(&mut play.calls) {
            play.answer(key, Err(Failure::Retry));
        }
        play.later(Duration::from_millis(500));
        assert!(play.now.since(start) < Duration::from_secs(60), "it stays for ever");
    }
    play.now.since(start)
}

#[test]
fn p19_a_router_that_puts_off_whatever_it_is_asked_is_left() {
    let asks: [fn(&mut Play); 4] = [
        |play| play.submit(Op::Read { offset: 0, len: 4096 }, 1),
        |play| play.submit(Op::BlockStatus { offset: 0, len: 4096, extents_max: 1 }, 1),
        |play| play.write(1, 0, NORMAL),
        |play| play.submit(Op::Flush, 1),
    ];
    let soon = TIMEOUT..=TIMEOUT + Duration::from_secs(3);
    for (at, ask) in asks.into_iter().enumerate() {
        for router_waits in [Duration::ZERO, ROUTER_WAITS] {
            let mut play = play();
            ask(&mut play);
            let after = left_after(&mut play, router_waits);
            assert!(soon.contains(&after), "question {at}: left after {after:?}");
            assert_eq!(play.replies, [], "its user waits");
            // Back there, as no other does better: it gets its time again.
            play.attach(1, &[]);
            if play.under_way().is_empty() {
                play.finish_replay();
            }
            let after = left_after(&mut play, router_waits);
            assert!(soon.contains(&after), "question {at}: left again after {after:?}");
        }
    }
}

#[test]
fn p19_a_router_that_puts_off_the_end_of_replay_is_left() {
    let mut play = Play::new(Settings { call_timeout: TIMEOUT, ..Settings::default() });
    play.attach(1, &[]);
    play.submit(Op::Read { offset: 0, len: 4096 }, 1);
    assert!(TIMEOUT <= left_after(&mut play, ROUTER_WAITS));
}

#[test]
fn a_router_that_does_in_the_end_what_it_put_off_is_stayed_with() {
    let mut play = play();
    let is_read = |request: &Request| matches!(request, Request::Read(_));
    for round in 0..20 {
        play.submit(Op::Read { offset: 0, len: 4096 }, round);
        play.submit(Op::Flush, round);
        for _ in 0..3 {
            play.later(Duration::from_secs(1));
            let (read, flush) = (play.take(is_read), play.take_flush());
            play.answer(read, Err(Failure::Retry));
            play.answer(flush, Err(Failure::Retry));
        }
        play.later(Duration::from_secs(1));
        let (read, flush) = (play.take(is_read), play.take_flush());
        play.answer(read, Ok(Answer::Data(Bytes::from(vec![0; 4096]))));
        play.flushed(flush, 1, 0);
        // Another reason to wait: the data, and not who serves them.
        play.submit(Op::Read { offset: 0, len: 4096 }, round);
        for failure in [Failure::Retry, Failure::Unreadable, Failure::Retry] {
            let read = play.take(is_read);
            play.answer(read, Err(failure));
            play.later(ROUTER_WAITS);
        }
        let read = play.take(is_read);
        play.answer(read, Ok(Answer::Data(Bytes::from(vec![0; 4096]))));
    }
    assert_eq!((play.relinks, play.replies.len()), (0, 60));
}
