//! What the reader of the socket passes to the channels of a connection.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::turn::Waiter;
use crate::frames::{Answer, Close, Event};

/// The channels on which the broker may still send something, by their numbers. Their handlers get
/// a reference to a `P`.
pub(super) struct Slots<P> {
    slots: BTreeMap<u16, Arc<Slot<P>>>,
    /// The greatest number of channels.
    pub(super) limit: u16,
}

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

impl<P> Slots<P> {
    /// Lowers the limit. 0 is none.
    pub(super) fn lower_limit(&mut self, limit: u16) {
        self.limit = if limit == 0 { self.limit } else { self.limit.min(limit) };
    }

    /// Adds a channel with the lowest number that is free. `Err` is the limit, if none is.
    pub(super) fn add(&mut self, slot: &Arc<Slot<P>>) -> Result<u16, u16> {
        let is_free = |number: &u16| !self.slots.contains_key(number);
        let number = (1..=self.limit).find(is_free).ok_or(self.limit)?;
        self.slots.insert(number, Arc::clone(slot));
        Ok(number)
    }

    pub(super) fn get(&self, number: u16) -> Option<Arc<Slot<P>>> {
        self.slots.get(&number).cloned()
    }

    pub(super) fn remove(&mut self, number: u16) {
        self.slots.remove(&number);
    }

    /// Whether a number will be free soon: a channel that is closed keeps its number until the
    /// broker has answered.
    pub(super) fn are_closing(&self) -> bool {
        self.slots.values().any(|slot| !slot.is_open.load(Ordering::Relaxed))
    }
}

impl<P> Default for Slots<P> {
    fn default() -> Slots<P> {
        Slots { slots: BTreeMap::new(), limit: u16::MAX }
    }
}
