//! A bounded queue that principals share.
//!
//! Whoever asks for much waits behind its own requests and nobody else's: principals take turns, and none may fill the
//! queue, so that there is room for the next one to come.

use domain::principal::ObjectId;
use std::collections::{HashMap, VecDeque};

/// Who a job is for; `None`: the pool itself.
pub(crate) type Payer = Option<ObjectId>;

pub(crate) struct Shares<T> {
    capacity: usize,
    waiting: usize,
    /// Whose turn it is; each payer that waits, once.
    turns: VecDeque<Payer>,
    queues: HashMap<Payer, VecDeque<T>>,
}

/// The queue is full, or the payer's share of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Full;

impl<T> Shares<T> {
    pub fn new(capacity: usize) -> Self {
        Self { capacity, waiting: 0, turns: VecDeque::new(), queues: HashMap::new() }
    }

    /// Where `n` principals wait, each may hold one part in `n + 1` of the queue.
    pub fn push(&mut self, payer: Payer, job: T) -> Result<(), Full> {
        let held = self.queues.get(&payer).map_or(0, VecDeque::len);
        let principals = self.queues.len() + usize::from(held == 0);
        let share = (self.capacity / (principals + 1)).max(1);
        if self.waiting >= self.capacity || held >= share {
            return Err(Full);
        }
        if held == 0 {
            self.turns.push_back(payer);
        }
        self.queues.entry(payer).or_default().push_back(job);
        self.waiting += 1;
        Ok(())
    }

    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The next job: of each payer in turn, in the order in which they came.
    pub fn pop(&mut self) -> Option<T> {
        let payer = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&payer)?;
        let job = queue.pop_front();
        self.waiting -= 1;
        if queue.is_empty() {
            self.queues.remove(&payer);
        } else {
            self.turns.push_back(payer);
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::guid::Guid;
    use proptest::prelude::*;

    fn payer(number: u8) -> Payer {
        Some(Guid([number; 16]))
    }

    #[test]
    fn who_comes_late_waits_for_one_job_of_each_other() {
        let mut shares = Shares::new(100);
        (0..40).for_each(|job| shares.push(payer(1), (1, job)).unwrap());
        shares.push(payer(2), (2, 0)).unwrap();
        shares.push(payer(2), (2, 1)).unwrap();
        shares.push(None, (0, 0)).unwrap();
        let order: Vec<_> = std::iter::from_fn(|| shares.pop()).collect();
        assert_eq!(order[..7], [(1, 0), (2, 0), (0, 0), (1, 1), (2, 1), (1, 2), (1, 3)]);
        assert_eq!(order.len(), 43);
    }

    #[test]
    fn nobody_fills_the_queue() {
        let mut shares = Shares::new(12);
        let pushed = |shares: &mut Shares<u8>, number| {
            (0..100).take_while(|_| shares.push(payer(number), number).is_ok()).count()
        };
        assert_eq!(pushed(&mut shares, 1), 6);
        assert_eq!(pushed(&mut shares, 2), 4);
        assert_eq!(shares.push(payer(1), 1), Err(Full));
        // What is left of the queue, although the share would be three.
        assert_eq!(pushed(&mut shares, 3), 2);
        assert_eq!(shares.push(None, 0), Err(Full));
        while shares.pop().is_some() {}
        assert_eq!((shares.waiting, shares.turns.len(), shares.queues.len()), (0, 0, 0));
        assert_eq!(pushed(&mut shares, 1), 6);
    }

    proptest! {
        /// Whatever is put in comes out once, each payer's in order, and never more waits than there may.
        #[test]
        fn nothing_is_lost_or_doubled(steps in proptest::collection::vec((0u8..4, any::<bool>()), 0..200)) {
            let mut shares = Shares::new(9);
            let (mut put, mut taken) = (Vec::new(), Vec::new());
            for (job, (number, pop)) in (0..).zip(steps) {
                if pop {
                    taken.extend(shares.pop());
                } else if shares.push(payer(number), (number, job)).is_ok() {
                    put.push((number, job));
                }
                prop_assert!(put.len() - taken.len() <= 9);
            }
            taken.extend(std::iter::from_fn(|| shares.pop()));
            for number in 0..4 {
                let of = |jobs: &[(u8, i32)]| jobs.iter().filter(|job| job.0 == number).copied().collect::<Vec<_>>();
                prop_assert_eq!(of(&put), of(&taken));
            }
        }
    }
}
