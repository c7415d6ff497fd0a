//! Tells which request the broker refused, if it closed the channel because of one.
//!
//! The broker handles the messages of a channel in the order in which they were written, and
//! ignores all those behind the one that it refuses. A reply to a request, or its return, proves
//! that the broker has accepted it and all those before it.

use std::collections::VecDeque;
use std::mem;

use uuid::Uuid;

/// The requests on the shared channel of one session that the broker is not known to have accepted.
/// They are numbered from 1, through all channels.
#[derive(Default)]
pub(super) struct WriteOrder {
    unproved: VecDeque<Written>,
    written: u64,
    /// The message whose answer came before it was noted here.
    answered: Option<Uuid>,
    /// Whether the broker has accepted one on the present channel.
    has_accepted: bool,
    /// Whether the broker has closed the channel because of one of them, and another channel may
    /// take its place.
    pub(super) is_refused: bool,
}

struct Written {
    number: u64,
    id: Uuid,
    size: usize,
    to_default: bool,
}

/// What became of the requests on a channel that the broker closed because of one of them.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    /// The request that the broker refused, so it was not executed. It is the one of the size that
    /// the broker named, or the only one.
    pub(super) refused: Option<Uuid>,
    /// The requests behind it, which the broker ignored. If it is not known which one the broker
    /// refused, all that it may have refused, ignored or accepted.
    pub(super) others: Vec<Uuid>,
    /// Whether all those that the broker may have refused went to the default exchange. If it
    /// refused one because of that exchange, it refused the first.
    pub(super) all_to_default: bool,
    /// Whether the broker may have refused what all requests need. If not, it has accepted an
    /// earlier one on the channel, and refused one to an exchange of its own.
    pub(super) may_concern_all: bool,
}

impl WriteOrder {
    /// Notes that a request is written, and returns its number. `size` is that of its body;
    /// `to_default` tells whether it goes to the default exchange.
    pub(super) fn write(&mut self, id: Uuid, size: usize, to_default: bool) -> u64 {
        /// More are not remembered, so one that was refused may not be found.
        const MAX_UNPROVED: usize = 1 << 16;
        self.written += 1;
        self.unproved.push_back(Written { number: self.written, id, size, to_default });
        if self.unproved.len() > MAX_UNPROVED {
            self.unproved.pop_front();
        }
        if self.answered.take_if(|answered| *answered == id).is_some() {
            self.prove(self.written);
        }
        self.written
    }

    /// Notes that the broker has accepted the request of this number.
    pub(super) fn prove(&mut self, number: u64) {
        while self.unproved.front().is_some_and(|written| written.number <= number) {
            self.unproved.pop_front();
            self.has_accepted = true;
        }
    }

    /// The same, by its id. Its writer may note it later.
    pub(super) fn prove_id(&mut self, id: Uuid) {
        let found = self.unproved.iter().find(|written| written.id == id);
        match found.map(|written| written.number) {
            Some(number) => self.prove(number),
            None => self.answered = Some(id),
        }
    }

    /// The broker has closed the channel because of a request: of one of this size, if it said so.
    pub(super) fn refuse(&mut self, size: Option<usize>) -> Refusal {
        self.is_refused = true;
        let has_accepted = mem::take(&mut self.has_accepted);
        let lost = mem::take(&mut self.unproved);
        let refused = match size {
            None if lost.len() == 1 => Some(0),
            // The broker would have refused an earlier request of this size first.
            _ => lost.iter().position(|written| Some(written.size) == size),
        };
        let others = lost.iter().skip(refused.map_or(0, |index| index + 1));
        let mut suspects = refused.map_or(0..lost.len(), |index| index..index + 1);
        let all_to_default = suspects.clone().all(|index| lost[index].to_default);
        Refusal {
            refused: refused.map(|index| lost[index].id),
            others: others.map(|written| written.id).collect(),
            all_to_default,
            may_concern_all: !has_accepted || suspects.any(|index| lost[index].to_default),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    /// Four requests of these sizes on the first channel.
    fn written() -> WriteOrder {
        let mut order = WriteOrder::default();
        for (number, size) in [(1, 7), (2, 2000), (3, 7), (4, 2000)] {
            assert_eq!(order.write(id(number), size, true), number as u64);
        }
        order
    }

    /// The refused request, if there is one, and the others, all to the default exchange.
    fn refusal(refused: u128, others: &[u128]) -> Refusal {
        let refused = (refused > 0).then_some(id(refused));
        let others = others.iter().map(|other| id(*other)).collect();
        Refusal { refused, others, all_to_default: true, may_concern_all: true }
    }

    #[test]
    fn size_names_the_refused_request_and_those_that_were_ignored() {
        assert_eq!(written().refuse(Some(2000)), refusal(2, &[3, 4]));
        let mut order = written();
        order.prove(3);
        assert_eq!(order.refuse(Some(2000)), refusal(4, &[]));
        assert_eq!(order.refuse(Some(2000)), refusal(0, &[]), "they are settled");
    }

    #[test]
    fn refusal_without_a_size_may_be_of_each_of_the_unproved_requests() {
        let mut order = written();
        order.prove_id(id(2));
        assert_eq!(order.refuse(None), refusal(0, &[3, 4]));
        assert_eq!(written().refuse(None), refusal(0, &[1, 2, 3, 4]));
    }

    #[test]
    fn only_request_on_the_next_channel_is_the_refused_one() {
        let mut order = written();
        order.prove(1);
        assert_eq!(order.refuse(Some(2000)), refusal(2, &[3, 4]));
        order.write(id(5), 7, true);
        assert_eq!(order.refuse(None), refusal(5, &[]));
    }

    #[test]
    fn message_that_was_answered_before_it_is_noted_is_proved() {
        let mut order = WriteOrder::default();
        order.prove_id(id(1));
        order.write(id(1), 7, true);
        order.write(id(2), 7, true);
        assert_eq!(order.refuse(None), refusal(2, &[]));
    }

    #[test]
    fn refusal_of_an_exchange_of_its_own_concerns_no_others_once_one_is_accepted() {
        let written = |accepted| {
            let mut order = written();
            order.prove(accepted);
            order.write(id(5), 7, false);
            let Refusal { all_to_default, may_concern_all, .. } = order.refuse(None);
            (all_to_default, may_concern_all, order)
        };
        assert!(matches!(written(0), (false, true, _)), "the broker may refuse the first");
        assert!(matches!(written(3), (false, true, _)), "it may refuse the fourth");
        let (all_to_default, may_concern_all, mut order) = written(4);
        assert!(!all_to_default && !may_concern_all);
        order.prove(4);
        order.write(id(6), 7, false);
        assert!(order.refuse(None).may_concern_all, "nothing is accepted on the next channel");
    }
}
