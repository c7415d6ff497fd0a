//! What the reader of the socket passes to the channels of a connection.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use super::turn::Waiter;
use crate::frames::{Answer, Close, Event};

/// The channels on which the broker may still send something, by their numbers. Their handlers get
/// a reference to a `P`.
pub(super) type Slots<P> = BTreeMap<u16, Arc<Slot<P>>>;

/// The state that the user of a channel shares with the reader of the socket.
pub(super) struct Slot<P> {
    pub(super) handler: Handler<P>,
    /// Whether the handler gets the answers, too.
    pub(super) handles_answers: bool,
    pub(super) is_open: AtomicBool,
    /// The reason that the broker gave, if it closed the channel.
    pub(super) closed: OnceLock<Close>,
    pub(super) answers: Mutex<Answers>,
    pub(super) waiter: Arc<Waiter>,
}

/// The reader calls it for every event on a channel except answers
/// ([`Slot::handles_answers`]). It must not block.
pub(super) type Handler<P> = Box<dyn Fn(&P, Event) + Send + Sync>;

/// The broker's answers to methods, which come in the order of the methods.
#[derive(Default)]
pub(super) struct Answers {
    /// Those that nobody has taken yet.
    arrived: VecDeque<Answer>,
    /// How many of the next ones nobody waits for any more.
    unwanted: u32,
}

impl Answers {
    /// Adds the next answer that arrives.
    pub(super) fn push(&mut self, answer: Answer) {
        match self.unwanted {
            0 => self.arrived.push_back(answer),
            _ => self.unwanted -= 1,
        }
    }

    /// Takes the answer to the earliest method that has not got one.
    pub(super) fn take(&mut self) -> Option<Answer> {
        self.arrived.pop_front()
    }

    pub(super) fn has_next(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Drops the next answer, even if it is yet to arrive.
    pub(super) fn skip(&mut self) {
        if self.take().is_none() {
            self.unwanted += 1;
        }
    }
}

impl<P> Slot<P> {
    pub(super) fn new(waiter: Arc<Waiter>, handler: Handler<P>, handles_answers: bool) -> Slot<P> {
        Slot {
            handler,
            handles_answers,
            is_open: AtomicBool::new(true),
            closed: OnceLock::new(),
            answers: Mutex::default(),
            waiter,
        }
    }
}
