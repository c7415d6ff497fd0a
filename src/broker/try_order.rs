//! The order in which to try the brokers.

use uuid::Uuid;

use super::url::Endpoint;

/// The brokers, in the order in which to try them.
///
/// The order after the first broker is random. If it were that of the list, all programs that were
/// connected to a failed node would connect to the same other node, and its failure would affect
/// all of them.
#[derive(Debug, Clone)]
pub(super) struct TryOrder {
    pub(super) brokers: Vec<Endpoint>,
    /// Whether none of them accepted a TCP connection when they were tried last: an early retry
    /// then puts no load on any broker.
    pub(super) retry_early: bool,
}

impl TryOrder {
    /// The order that begins with the first of these brokers.
    pub(super) fn new(brokers: Vec<Endpoint>) -> TryOrder {
        let mut order = TryOrder { brokers, retry_early: false };
        order.shuffle_others();
        order
    }

    pub(super) fn shuffle_others(&mut self) {
        self.brokers[1..].sort_by_cached_key(|_| Uuid::new_v4());
    }

    pub(super) fn move_to_end(&mut self, broker: &Endpoint) {
        // The sort is stable, so the others keep their order.
        self.brokers.sort_by_key(|other| other == broker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Brokers whose host names have one letter each.
    fn brokers(names: &str) -> Vec<Endpoint> {
        names.chars().map(|name| format!("amqp://{name}").parse().unwrap()).collect()
    }

    fn names(order: &TryOrder) -> String {
        order.brokers.iter().map(|broker| &*broker.host).collect()
    }

    #[test]
    fn order_is_random_after_the_first_broker() {
        let orders: Vec<_> = (0..100).map(|_| names(&TryOrder::new(brokers("bac")))).collect();
        assert!(orders.iter().all(|order| order.starts_with('b')), "{orders:?}");
        for order in ["bac", "bca"] {
            assert!(orders.contains(&order.to_string()), "{order} is missing");
        }
    }

    #[test]
    fn brokers_that_do_not_work_come_last() {
        let mut order = TryOrder { brokers: brokers("bac"), retry_early: false };
        for (broker, expected) in [("a", "bca"), ("b", "cab"), ("b", "cab")] {
            order.move_to_end(&brokers(broker)[0]);
            assert_eq!(names(&order), expected);
        }
        let mut single = TryOrder::new(brokers("a"));
        single.move_to_end(&brokers("a")[0]);
        assert_eq!(names(&single), "a");
    }
}
