//! Tests the read turn with a model checker. [shuttle](https://docs.rs/shuttle) runs the threads of
//! a test one at a time. At each lock, wait and notification it chooses at random which thread
//! continues, in thousands of runs. If no thread can continue, that is a deadlock, and the test
//! fails.
//!
//! `SHUTTLE_ITERATIONS=1000000 cargo test --release model::` runs more iterations.

mod scenarios;
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

    /// Starts a thread that waits until the caller has received a message. It returns whether one
    /// has come.
    fn start_waiting(self: &Arc<Model>, caller: usize, until: Moment) -> thread::JoinHandle<bool> {
        let model = Arc::clone(self);
        thread::spawn(move || model.wait(caller, 1, until))
    }

    /// Makes a caller ready without a message, and does not wake it.
    fn make_ready(&self, caller: usize) {
        *self.mailboxes[caller].received.lock().unwrap() += 1;
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
