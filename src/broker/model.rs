//! Tests the read turn with a model checker. [shuttle](https://docs.rs/shuttle) runs the threads of
//! a test one at a time. At each lock, wait and notification it chooses at random which thread
//! continues, in thousands of runs. If no thread can continue, that is a deadlock, and the test
//! fails.
//!
//! `SHUTTLE_ITERATIONS=1000000 cargo test --release model::` runs more iterations.

#[allow(clippy::duplicate_mod)] // on purpose: here it uses another `sync`
#[path = "turn.rs"]
mod turn;

use std::collections::VecDeque;

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Arc, mpsc};
use shuttle::thread;

use sync::Moment;
use turn::{ReadTurn, Reader, Socket, Waiter};

/// Replaces [`super::sync`].
mod sync {
    use std::ops::{Deref, DerefMut};
    use std::time::Duration;

    use shuttle::rand::{Rng, thread_rng};
    pub(super) use shuttle::sync::{Arc, Condvar};
    pub(super) use std::sync::PoisonError;

    /// The model has no clock. `Soon` passes at some point, `Never` does not.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub(super) enum Moment {
        Soon,
        Never,
    }

    /// A mutex whose guard refers to it, so that a wait can end without a notification.
    #[derive(Default)]
    pub(super) struct Mutex<T>(shuttle::sync::Mutex<T>);

    pub(super) struct MutexGuard<'a, T> {
        mutex: &'a Mutex<T>,
        guard: Option<shuttle::sync::MutexGuard<'a, T>>,
    }

    impl<T> Mutex<T> {
        pub(super) fn lock(&self) -> Result<MutexGuard<'_, T>, PoisonError<MutexGuard<'_, T>>> {
            Ok(MutexGuard { mutex: self, guard: Some(self.0.lock().unwrap()) })
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.guard.as_ref().unwrap()
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.guard.as_mut().unwrap()
        }
    }

    pub(super) fn has_passed(moment: Moment) -> bool {
        moment == Moment::Soon && thread_rng().gen_bool(0.5)
    }

    pub(super) fn after(_: Duration) -> Moment {
        Moment::Soon
    }

    pub(super) fn wait_until<'a, T>(
        condition: &Condvar,
        mut guard: MutexGuard<'a, T>,
        until: Option<Moment>,
    ) -> MutexGuard<'a, T> {
        if until == Some(Moment::Soon) {
            let mutex = guard.mutex;
            drop(guard);
            shuttle::thread::yield_now();
            return mutex.lock().unwrap();
        }
        let inner = guard.guard.take().unwrap();
        guard.guard = Some(condition.wait(inner).unwrap());
        guard
    }
}

/// A connection to a broker that answers, and callers with one mailbox each.
#[derive(Default)]
struct Model {
    turn: ReadTurn,
    wire: shuttle::sync::Mutex<Wire>,
    changed: shuttle::sync::Condvar,
    mailboxes: Vec<Mailbox>,
}

#[derive(Default)]
struct Wire {
    /// The caller of each message that no thread has read yet.
    incoming: VecDeque<usize>,
    is_interrupted: [bool; 2],
    has_ended: bool,
    has_reader: bool,
}

#[derive(Default)]
struct Mailbox {
    waiter: Arc<Waiter>,
    received: shuttle::sync::Mutex<usize>,
}

impl Socket for Model {
    fn poll(&self, reader: Reader, until: Option<Moment>) -> bool {
        let mut wire = self.wire.lock().unwrap();
        loop {
            if wire.has_ended || !wire.incoming.is_empty() {
                return true;
            }
            if std::mem::take(&mut wire.is_interrupted[reader as usize]) {
                return false;
            }
            if until == Some(Moment::Soon) {
                drop(wire);
                thread::yield_now();
                wire = self.wire.lock().unwrap();
                if thread_rng().gen_bool(0.5) {
                    return false;
                }
            } else {
                wire = self.changed.wait(wire).unwrap();
            }
        }
    }

    fn read(&self) {
        let mut wire = self.wire.lock().unwrap();
        assert!(!std::mem::replace(&mut wire.has_reader, true), "two threads read at once");
        let next = wire.incoming.pop_front();
        let has_ended = wire.has_ended && next.is_none();
        drop(wire);
        if let Some(mailbox) = next.map(|next| &self.mailboxes[next]) {
            *mailbox.received.lock().unwrap() += 1;
            self.turn.notify(&mailbox.waiter);
        }
        self.wire.lock().unwrap().has_reader = false;
        if has_ended {
            self.turn.end(self);
        }
    }

    fn interrupt_poll(&self, reader: Reader) {
        self.wire.lock().unwrap().is_interrupted[reader as usize] = true;
        self.changed.notify_all();
    }
}

impl Model {
    fn new(callers: usize) -> Arc<Model> {
        let mailboxes = (0..callers).map(|_| Mailbox::default()).collect();
        Arc::new(Model { mailboxes, ..Default::default() })
    }

    fn deliver(&self, caller: usize) {
        self.wire.lock().unwrap().incoming.push_back(caller);
        self.changed.notify_all();
    }

    fn hang_up(&self) {
        self.wire.lock().unwrap().has_ended = true;
        self.changed.notify_all();
    }

    fn received(&self, caller: usize) -> usize {
        *self.mailboxes[caller].received.lock().unwrap()
    }

    /// Waits until the caller has received this many messages.
    fn wait(&self, caller: usize, messages: usize, until: Moment) -> bool {
        let is_ready = || self.received(caller) >= messages;
        self.turn.wait(self, &self.mailboxes[caller].waiter, until, is_ready);
        is_ready()
    }

    fn reserve(self: &Arc<Model>) -> thread::JoinHandle<()> {
        let model = Arc::clone(self);
        thread::spawn(move || model.turn.run_reserve(&*model))
    }

    /// A broker that answers each request at a random time. It ends when all senders are dropped.
    fn broker(self: &Arc<Model>) -> (mpsc::Sender<usize>, thread::JoinHandle<()>) {
        let model = Arc::clone(self);
        let (sender, requests) = mpsc::channel();
        let answer = move || requests.iter().for_each(|caller| model.deliver(caller));
        (sender, thread::spawn(answer))
    }
}

fn check(scenario: impl Fn() + Send + Sync + 'static) {
    let iterations = std::env::var("SHUTTLE_ITERATIONS");
    let iterations = iterations.map_or(3000, |number| number.parse().expect("it is a number"));
    shuttle::check_random(scenario, iterations);
}

/// Each caller makes two calls, and receives both replies.
fn callers_get_their_replies(callers: usize, has_reserve: bool) {
    let model = Model::new(callers);
    let reserve = has_reserve.then(|| model.reserve());
    let (requests, broker) = model.broker();
    let threads: Vec<_> = (0..callers)
        .map(|caller| {
            let (model, requests) = (Arc::clone(&model), requests.clone());
            thread::spawn(move || {
                for call in 1..=2 {
                    requests.send(caller).unwrap();
                    assert!(model.wait(caller, call, Moment::Never));
                }
                assert_eq!(model.received(caller), 2, "no reply of another's");
            })
        })
        .collect();
    drop(requests);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    broker.join().unwrap();
    model.hang_up();
    reserve.into_iter().for_each(|reserve| reserve.join().unwrap());
}

#[test]
fn two_callers_pass_the_turn() {
    check(|| callers_get_their_replies(2, false));
}

#[test]
fn three_callers_pass_the_turn() {
    check(|| callers_get_their_replies(3, false));
}

#[test]
fn callers_and_reserve_share_the_turn() {
    check(|| callers_get_their_replies(2, true));
}

/// The first caller's reply arrives only after the second caller has returned with its own reply.
#[test]
fn reply_wakes_its_caller_while_another_reads() {
    for has_reserve in [false, true] {
        check(move || {
            let model = Model::new(2);
            let reserve = has_reserve.then(|| model.reserve());
            let [first, second] = [0, 1].map(|caller| {
                let model = Arc::clone(&model);
                thread::spawn(move || model.wait(caller, 1, Moment::Never))
            });
            model.deliver(1);
            assert!(second.join().unwrap());
            model.deliver(0);
            assert!(first.join().unwrap());
            model.hang_up();
            reserve.into_iter().for_each(|reserve| reserve.join().unwrap());
        });
    }
}

/// The second caller gets no reply and returns when its time is up, whichever thread has the turn.
/// The other callers still get their replies.
#[test]
fn caller_returns_at_its_deadline_whoever_reads() {
    for has_reserve in [false, true] {
        check(move || {
            let model = Model::new(3);
            let reserve = has_reserve.then(|| model.reserve());
            let threads = [(0, Moment::Never), (1, Moment::Soon), (2, Moment::Never)].map(
                |(caller, until)| {
                    let model = Arc::clone(&model);
                    thread::spawn(move || model.wait(caller, 1, until))
                },
            );
            model.deliver(2);
            model.deliver(0);
            let answered = threads.map(|thread| thread.join().unwrap());
            assert_eq!(answered, [true, false, true]);
            model.hang_up();
            reserve.into_iter().for_each(|reserve| reserve.join().unwrap());
        });
    }
}

/// The peer closes the connection at a random point. Every caller returns, and messages that
/// arrived before are received.
#[test]
fn end_of_the_connection_releases_everybody() {
    check(|| {
        let model = Model::new(3);
        let reserve = model.reserve();
        let threads = [0, 1, 2].map(|caller| {
            let model = Arc::clone(&model);
            thread::spawn(move || model.wait(caller, 1, Moment::Never))
        });
        model.deliver(1);
        // As if bytes of amiquip's did not fit into the socket.
        model.turn.interrupt_poll(&*model);
        model.hang_up();
        let answered = threads.map(|thread| thread.join().unwrap());
        assert_eq!(answered, [false, true, false]);
        reserve.join().unwrap();
    });
}

/// Another thread makes a caller ready while that caller reads or stands by.
#[test]
fn wake_reaches_a_caller_that_reads() {
    check(|| {
        let model = Model::new(2);
        let reserve = model.reserve();
        let threads = [0, 1].map(|caller| {
            let model = Arc::clone(&model);
            thread::spawn(move || model.wait(caller, 1, Moment::Never))
        });
        for mailbox in &model.mailboxes {
            *mailbox.received.lock().unwrap() += 1;
            model.turn.wake(&*model, &mailbox.waiter);
        }
        assert_eq!(threads.map(|thread| thread.join().unwrap()), [true, true]);
        model.hang_up();
        reserve.join().unwrap();
    });
}

/// The connection is cut by a thread that is not the reader.
#[test]
fn cut_releases_everybody() {
    for has_reserve in [false, true] {
        check(move || {
            let model = Model::new(2);
            let reserve = has_reserve.then(|| model.reserve());
            let threads = [0, 1].map(|caller| {
                let model = Arc::clone(&model);
                thread::spawn(move || model.wait(caller, 1, Moment::Never))
            });
            model.turn.end(&*model);
            assert_eq!(threads.map(|thread| thread.join().unwrap()), [false, false]);
            reserve.into_iter().for_each(|reserve| reserve.join().unwrap());
        });
    }
}

/// A condition may become true for a caller that is not woken: of those that wait for an in-flight
/// slot, only the first is. If it leaves at the end of a step, it does not stay on the list.
#[test]
fn caller_that_is_ready_without_a_signal_leaves_the_list() {
    for has_reserve in [false, true] {
        check(move || {
            let model = Model::new(3);
            let reserve = has_reserve.then(|| model.reserve());
            let [first, last] = [0, 2].map(|caller| {
                let model = Arc::clone(&model);
                thread::spawn(move || model.wait(caller, 1, Moment::Never))
            });
            let other = Arc::clone(&model);
            let stepping = thread::spawn(move || {
                let is_ready = || other.received(0) >= 1;
                while !is_ready() {
                    other.turn.wait(&*other, &other.mailboxes[1].waiter, Moment::Soon, is_ready);
                }
            });
            model.turn.wake_all(&*model);
            model.deliver(0);
            assert!(first.join().unwrap());
            stepping.join().unwrap();
            model.deliver(2);
            assert!(last.join().unwrap());
            model.hang_up();
            reserve.into_iter().for_each(|reserve| reserve.join().unwrap());
        });
    }
}

/// A caller leaves at its deadline although another keeps the turn for longer.
#[test]
fn caller_leaves_at_its_deadline_while_another_reads() {
    for has_reserve in [false, true] {
        check(move || {
            let model = Model::new(2);
            let reserve = has_reserve.then(|| model.reserve());
            let [reading, leaving] =
                [(0, Moment::Never), (1, Moment::Soon)].map(|(caller, until)| {
                    let model = Arc::clone(&model);
                    thread::spawn(move || model.wait(caller, 1, until))
                });
            assert!(!leaving.join().unwrap());
            model.deliver(0);
            assert!(reading.join().unwrap());
            model.hang_up();
            reserve.into_iter().for_each(|reserve| reserve.join().unwrap());
        });
    }
}

/// A caller is woken, alone or with all others, while another that is not ready keeps the turn.
#[test]
fn wake_reaches_a_caller_that_stands_by() {
    for wakes_all in [false, true] {
        check(move || {
            let model = Model::new(2);
            let [other, woken] = [0, 1].map(|caller| {
                let model = Arc::clone(&model);
                thread::spawn(move || model.wait(caller, 1, Moment::Never))
            });
            *model.mailboxes[1].received.lock().unwrap() += 1;
            match wakes_all {
                true => model.turn.wake_all(&*model),
                false => model.turn.wake(&*model, &model.mailboxes[1].waiter),
            }
            assert!(woken.join().unwrap());
            model.deliver(0);
            assert!(other.join().unwrap());
        });
    }
}
