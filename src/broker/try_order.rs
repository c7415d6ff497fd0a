//! The order in which to try the brokers.

use uuid::Uuid;

/// The indices of the brokers in the list, in the order in which to try them.
///
/// The order after the first broker is random. If it were that of the list, all programs that were
/// connected to a failed node would connect to the same other node, and its failure would affect
/// all of them.
#[derive(Debug, Clone)]
pub(super) struct TryOrder {
    pub(super) brokers: Vec<usize>,
    /// Whether none of them accepted a TCP connection when they were tried last: an early retry
    /// then puts no load on any broker.
    pub(super) retry_early: bool,
}

impl TryOrder {
    pub(super) fn new(first: usize, count: usize) -> TryOrder {
        let mut order = TryOrder { brokers: (0..count).collect(), retry_early: false };
        order.brokers.swap(0, first);
        order.shuffle_others();
        order
    }

    pub(super) fn shuffle_others(&mut self) {
        self.brokers[1..].sort_by_cached_key(|_| Uuid::new_v4());
    }

    pub(super) fn move_to_end(&mut self, broker: usize) {
        // The sort is stable, so the others keep their order.
        self.brokers.sort_by_key(|other| *other == broker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_random_after_the_first_broker() {
        let orders: Vec<Vec<usize>> = (0..100).map(|_| TryOrder::new(1, 3).brokers).collect();
        assert!(orders.iter().all(|order| order[0] == 1), "{orders:?}");
        for order in [[1, 0, 2], [1, 2, 0]] {
            assert!(orders.contains(&order.to_vec()), "{order:?} is missing");
        }
    }

    #[test]
    fn brokers_that_do_not_work_come_last() {
        let mut order = TryOrder { brokers: vec![1, 0, 2], retry_early: false };
        order.move_to_end(0);
        assert_eq!(order.brokers, [1, 2, 0]);
        order.move_to_end(1);
        assert_eq!(order.brokers, [2, 0, 1]);
        let mut single = TryOrder::new(0, 1);
        single.move_to_end(0);
        assert_eq!(single.brokers, [0]);
    }
}
