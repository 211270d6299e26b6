use futures_util::FutureExt;
use futures_util::task::noop_waker;

use super::*;

/// A task that notes its name each time it is polled, and never ends.
fn noting(whose: &Whose, name: &'static str, seen: &Arc<Mutex<Vec<&'static str>>>) -> Turn<impl Future<Output = ()> + use<>> {
    let seen = seen.clone();
    whose.take(std::future::poll_fn(move |_| {
        seen.lock().unwrap().push(name);
        Poll::Pending
    }))
}

fn poll<F: Future>(turn: &mut Turn<F>) -> Poll<F::Output> {
    turn.poll_unpin(&mut Context::from_waker(&noop_waker()))
}

/// A user who has company.
fn user(turns: &Arc<Turns>, name: &str) -> Whose {
    let whose = turns.newcomer();
    whose.is(name);
    turns.company.store(u64::MAX, Ordering::SeqCst);
    whose
}

#[test]
fn who_is_alone_has_everything_until_somebody_comes() {
    let turns = Turns::new(2);
    let (one, other) = (turns.newcomer(), turns.newcomer());
    one.is("one");
    other.is("other");
    let line = |whose: &Whose| whose.1.load_full();
    let later = |seconds| turns.born + Duration::from_secs(seconds);
    assert!(!turns.is_alone(&line(&one), later(1)), "nobody knows yet");
    assert!(!turns.is_alone(&line(&one), later(1)));
    assert!(!turns.is_alone(&line(&turns.newcomer()), later(3)), "newcomers never are");
    assert!(turns.is_alone(&line(&one), later(3)), "and are no company");
    assert!(!turns.is_alone(&line(&other), later(4)));
    assert!(!turns.is_alone(&line(&other), later(4)));
    assert!(!turns.is_alone(&line(&one), later(4)), "the other was there just now");
    assert!(turns.is_alone(&line(&one), later(6)));
    turns.is_busy_inside(later(7));
    assert!(!turns.is_alone(&line(&one), later(7)) && turns.is_alone(&line(&one), later(8)));
    turns.company.store(0, Ordering::SeqCst);
    let inside = |_: &mut Context<'_>| {
        assert!((0..5).all(|_| poll(&mut one.take(async {})).is_ready()), "as many at once as there are");
        assert_eq!(turns.taken.load(Ordering::SeqCst), 0, "and nobody counts them");
        Poll::Ready(())
    };
    assert!(poll(&mut one.take(std::future::poll_fn(inside))).is_ready());
}

#[test]
fn another_users_work_goes_before_what_a_flood_has_waiting() {
    let turns = Turns::new(1);
    let seen = Arc::default();
    let (flood, tenant) = (user(&turns, "flood"), user(&turns, "tenant"));
    let mut many: Vec<_> = (0..50).map(|_| noting(&flood, "flood", &seen)).collect();
    let mut one = noting(&tenant, "tenant", &seen);
    // Whose poll holds the only place while all the others come.
    let mut holder = flood.take(std::future::poll_fn(|_| {
        many.iter_mut().for_each(|turn| assert!(poll(turn).is_pending()));
        assert!(poll(&mut one).is_pending());
        Poll::Ready(())
    }));
    assert!(poll(&mut holder).is_ready());
    drop(holder);
    for _ in 0..3 {
        many.iter_mut().for_each(|turn| _ = poll(turn));
        let _ = poll(&mut one);
    }
    let seen = seen.lock().unwrap();
    let at = seen.iter().position(|name| *name == "tenant").expect("the tenant had its turn");
    assert!(at <= 1, "after {at} polls of the flood");
    assert!(seen.iter().filter(|name| **name == "flood").count() >= 50);
}

#[test]
fn one_line_never_has_all_the_places() {
    let turns = Turns::new(3);
    let flood = user(&turns, "flood");
    let tenant = user(&turns, "tenant");
    let inside = |_: &mut Context<'_>| {
        let second = |_: &mut Context<'_>| {
            let mut third = flood.take(async {});
            assert!(poll(&mut third).is_pending(), "two of three places are the flood's");
            assert!(poll(&mut tenant.take(async {})).is_ready(), "the third is there for others");
            Poll::Ready(())
        };
        assert!(poll(&mut flood.take(std::future::poll_fn(second))).is_ready());
        Poll::Ready(())
    };
    assert!(poll(&mut flood.take(std::future::poll_fn(inside))).is_ready());
    assert_eq!(turns.taken.load(Ordering::SeqCst), 0);
    assert!(poll(&mut flood.take(async {})).is_ready(), "who gave up waiting holds nobody up");
}

#[test]
fn who_was_called_and_gives_up_hands_the_place_on() {
    let turns = Turns::new(1);
    let (a, b) = (user(&turns, "a"), user(&turns, "b"));
    let (mut first, mut second) = (a.take(async {}), b.take(async {}));
    let holder = |_: &mut Context<'_>| {
        assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
        Poll::Ready(())
    };
    assert!(poll(&mut a.take(std::future::poll_fn(holder))).is_ready());
    drop(first);
    assert!(poll(&mut second).is_ready());
    assert_eq!((turns.taken.load(Ordering::SeqCst), turns.waiting.load(Ordering::SeqCst)), (0, 0));
}

#[test]
fn a_panic_gives_the_place_back() {
    let turns = Turns::new(1);
    let whose = user(&turns, "a");
    let mut turn = whose.take(async { panic!("on purpose") });
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| poll(&mut turn))).is_err());
    assert!(poll(&mut whose.take(async {})).is_ready());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_work_of_many_users_ends() {
    let turns = Turns::of_runtime();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200 {
        let whose = user(&turns, &format!("user-{}", number % 7));
        tasks.spawn(whose.clone().take(async move {
            for round in 0..100 {
                whose.is(&format!("user-{}", (number + round) % 7));
                tokio::task::yield_now().await;
            }
        }));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    assert_eq!((turns.taken.load(Ordering::SeqCst), turns.waiting.load(Ordering::SeqCst)), (0, 0));
}
