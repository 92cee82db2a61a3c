//! The wait for the answer to a lone request: to sleep until it comes, and to be woken, takes a thread half as long as a Redis
//! that is near takes to answer. So the thread stays awake, as long as answers come that soon. It knows nothing of Redis:
//! `link.rs` gives it what to wait for.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::task;

pub(super) struct BusyPoll {
    /// For how long an answer is polled for, if the last one came within it; 0: none is.
    within: Duration,
    /// How long the last one took, or of one that was slept for, would have taken had it been polled for.
    took: Duration,
}

/// By how much an answer that is slept for takes longer, at least: 70 to 80 us of the p50 where it was measured.
const WAKING: Duration = Duration::from_micros(50);

impl BusyPoll {
    pub fn new(within: Duration) -> Self {
        Self { within, took: Duration::ZERO }
    }

    /// Waits for an answer. Between two looks the core's other threads have their turns, for Redis may be one of them, and the
    /// thread's other tasks.
    pub async fn wait<F: Future>(&mut self, answer: F) -> F::Output {
        let mut answer = pin!(answer);
        let (since, is_near) = (Instant::now(), self.took < self.within);
        let mut asked = false;
        while is_near && since.elapsed() < self.within {
            if let Poll::Ready(answer) = poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx))).await {
                self.took = since.elapsed();
                return answer;
            }
            // Not before the other tasks have sent what the first look asked for.
            if asked {
                std::thread::yield_now();
            }
            asked = true;
            task::yield_now().await;
        }
        let answer = answer.await;
        self.took = if is_near { since.elapsed() } else { since.elapsed().saturating_sub(WAKING) };
        answer
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const TURNS: u32 = 100;

    /// How often it is looked for an answer that another task of the thread gives after some turns; a look takes so long.
    async fn looks(busy_poll: &mut BusyPoll, look: Duration) -> u32 {
        let (answer, mut answered) = oneshot::channel();
        task::spawn(async {
            for _ in 0..TURNS {
                task::yield_now().await;
            }
            answer.send(()).unwrap();
        });
        let mut looks = 0;
        let counted = poll_fn(|cx| {
            looks += 1;
            std::thread::sleep(look);
            pin!(&mut answered).poll(cx)
        });
        busy_poll.wait(counted).await.unwrap();
        looks
    }

    #[tokio::test]
    async fn an_answer_is_polled_for_while_others_have_their_turns() {
        assert!(looks(&mut BusyPoll::new(LONG), Duration::ZERO).await >= TURNS);
    }

    #[tokio::test]
    async fn an_answer_is_slept_for_where_the_last_one_took_too_long() {
        let mut busy_poll = BusyPoll { within: LONG, took: LONG };
        let since = Instant::now();
        assert_eq!(looks(&mut busy_poll, Duration::from_millis(1)).await, 2, "once, and when it is there");
        assert!(busy_poll.took + WAKING <= since.elapsed(), "what waking up takes is not Redis's");
        assert!(looks(&mut busy_poll, Duration::ZERO).await >= TURNS, "it came soon");
        assert_eq!(looks(&mut BusyPoll::new(Duration::ZERO), Duration::ZERO).await, 2, "nothing comes within no time");
    }

    #[tokio::test]
    async fn polling_ends_with_its_time() {
        let mut busy_poll = BusyPoll::new(Duration::from_millis(1));
        let seen = looks(&mut busy_poll, Duration::from_millis(2)).await;
        assert!(seen <= 3, "one that took too long, one before it sleeps, and one when it is there: {seen}");
        assert!(busy_poll.took >= Duration::from_millis(4), "{:?}", busy_poll.took);
    }

    #[tokio::test]
    async fn what_is_there_at_once_is_not_waited_for() {
        let mut looks = 0;
        BusyPoll::new(LONG)
            .wait(poll_fn(|_| {
                looks += 1;
                Poll::Ready(())
            }))
            .await;
        assert_eq!(looks, 1);
    }
}
