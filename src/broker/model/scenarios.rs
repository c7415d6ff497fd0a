//! What the threads of a connection do in each test.

use std::env;

use shuttle::sync::Arc;
use shuttle::thread;

use super::Model;
use super::sync::Moment::{Never, Soon};

/// Runs the scenario many times with this many callers, without and with a reserve thread. Then the
/// peer closes the connection, which ends the reserve.
fn check(callers: usize, scenario: impl Fn(&Arc<Model>) + Send + Sync + 'static) {
    let iterations = env::var("SHUTTLE_ITERATIONS");
    let iterations = iterations.map_or(3000, |number| number.parse().expect("it is a number"));
    let scenario = Arc::new(scenario);
    for has_reserve in [false, true] {
        let scenario = Arc::clone(&scenario);
        let run = move || {
            let model = Model::new(callers);
            let reserve = has_reserve.then(|| model.reserve());
            scenario(&model);
            model.hang_up();
            reserve.into_iter().for_each(|reserve| reserve.join().unwrap());
        };
        shuttle::check_random(run, iterations);
    }
}

/// Each caller makes two calls, and receives both replies.
fn check_calls(callers: usize) {
    check(callers, move |model| {
        let (requests, broker) = model.broker();
        let threads: Vec<_> = (0..callers)
            .map(|caller| {
                let (model, requests) = (Arc::clone(model), requests.clone());
                thread::spawn(move || {
                    for call in 1..=2 {
                        requests.send(caller).unwrap();
                        assert!(model.wait(caller, call, Never));
                    }
                    assert_eq!(model.received(caller), 2, "no reply of another's");
                })
            })
            .collect();
        drop(requests);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        broker.join().unwrap();
    });
}

#[test]
fn two_callers_pass_the_turn() {
    check_calls(2);
}

#[test]
fn three_callers_pass_the_turn() {
    check_calls(3);
}

/// The first caller's reply arrives only after the second caller has returned with its own reply.
#[test]
fn reply_wakes_its_caller_while_another_reads() {
    check(2, |model| {
        let [first, second] = [0, 1].map(|caller| model.start_waiting(caller, Never));
        model.deliver(1);
        assert!(second.join().unwrap());
        model.deliver(0);
        assert!(first.join().unwrap());
    });
}

/// The second caller gets no reply and returns when its time is up, whichever thread has the turn.
/// The other callers still get their replies.
#[test]
fn caller_returns_at_its_deadline_whoever_reads() {
    check(3, |model| {
        let waits = [(0, Never), (1, Soon), (2, Never)];
        let threads = waits.map(|(caller, until)| model.start_waiting(caller, until));
        model.deliver(2);
        model.deliver(0);
        assert_eq!(threads.map(|thread| thread.join().unwrap()), [true, false, true]);
    });
}

/// The peer closes the connection at a random point. Every caller returns, and messages that
/// arrived before are received.
#[test]
fn end_of_the_connection_releases_everybody() {
    check(3, |model| {
        let threads = [0, 1, 2].map(|caller| model.start_waiting(caller, Never));
        model.deliver(1);
        // As if bytes of amiquip's did not fit into the socket.
        model.turn.interrupt_poll(&**model);
        model.hang_up();
        assert_eq!(threads.map(|thread| thread.join().unwrap()), [false, true, false]);
    });
}

/// Another thread makes a caller ready while that caller reads or stands by.
#[test]
fn wake_reaches_a_caller_that_reads() {
    check(2, |model| {
        let threads = [0, 1].map(|caller| model.start_waiting(caller, Never));
        for caller in [0, 1] {
            model.make_ready(caller);
            model.turn.wake(&**model, &model.mailboxes[caller].waiter);
        }
        assert_eq!(threads.map(|thread| thread.join().unwrap()), [true, true]);
    });
}

/// The connection is cut by a thread that is not the reader.
#[test]
fn cut_releases_everybody() {
    check(2, |model| {
        let threads = [0, 1].map(|caller| model.start_waiting(caller, Never));
        model.turn.end(&**model);
        assert_eq!(threads.map(|thread| thread.join().unwrap()), [false, false]);
    });
}

/// A condition may become true for a caller that is not woken: of those that wait for an in-flight
/// slot, only the first is. If it leaves at the end of a step, it does not stay on the list.
#[test]
fn caller_that_is_ready_without_a_signal_leaves_the_list() {
    check(3, |model| {
        let [first, last] = [0, 2].map(|caller| model.start_waiting(caller, Never));
        let other = Arc::clone(model);
        let stepping = thread::spawn(move || {
            let is_ready = || other.received(0) >= 1;
            while !is_ready() {
                other.turn.wait(&*other, &other.mailboxes[1].waiter, Soon, is_ready);
            }
        });
        model.turn.wake_all(&**model);
        model.deliver(0);
        assert!(first.join().unwrap());
        stepping.join().unwrap();
        model.deliver(2);
        assert!(last.join().unwrap());
    });
}

/// A caller leaves at its deadline although another keeps the turn for longer.
#[test]
fn caller_leaves_at_its_deadline_while_another_reads() {
    check(2, |model| {
        let waits = [(0, Never), (1, Soon)];
        let [reading, leaving] = waits.map(|(caller, until)| model.start_waiting(caller, until));
        assert!(!leaving.join().unwrap());
        model.deliver(0);
        assert!(reading.join().unwrap());
    });
}

/// A caller is woken, alone or with all others, while another that is not ready keeps the turn.
#[test]
fn wake_reaches_a_caller_that_stands_by() {
    for wakes_all in [false, true] {
        check(2, move |model| {
            let [other, woken] = [0, 1].map(|caller| model.start_waiting(caller, Never));
            model.make_ready(1);
            match wakes_all {
                true => model.turn.wake_all(&**model),
                false => model.turn.wake(&**model, &model.mailboxes[1].waiter),
            }
            assert!(woken.join().unwrap());
            model.deliver(0);
            assert!(other.join().unwrap());
        });
    }
}
