use super::*;

fn level(seats: usize, queues: usize, length: usize) -> Arc<Level> {
    let settings = Settings {
        exempt: false,
        shares: 1,
        lendable_percent: 0,
        borrowing_percent: None,
        queues,
        hand: 2.min(queues),
        queue_length: length,
    };
    Level::new("level", settings, Limits { nominal: seats, min: seats, max: seats })
}

fn ticket(flow: &str, seats: usize) -> Ticket {
    Ticket { seats, flow: flow.to_owned(), details: String::new(), arrived: Timestamp::now(), is_watch: false, counted: Counted::nowhere() }
}

fn wait(entry: Entry) -> Waiting {
    match entry {
        Entry::Wait(waiting) => waiting,
        _ => panic!("it waits"),
    }
}

fn place(entry: Entry) -> Place {
    match entry {
        Entry::Now(place) => place,
        _ => panic!("there is a seat"),
    }
}

/// The seat of one who waits, if it has been called.
fn called(mut waiting: Waiting) -> Option<Place> {
    waiting.receiver.try_recv().ok()
}

fn load(level: &Level) -> (usize, usize) {
    let now = level.snapshot();
    (now.seats_taken, now.waiting)
}

#[test]
fn a_flood_of_one_flow_leaves_room_for_another() {
    let level = level(1, 64, 1_000);
    let mut holding = place(level.enter(ticket("flood", 1)));
    let mut flood: Vec<Waiting> = (0..100).map(|_| wait(level.enter(ticket("flood", 1)))).collect();
    let mut other = wait(level.enter(ticket("other", 1)));
    let mut turns = 0;
    loop {
        drop(holding);
        if other.receiver.try_recv().is_ok() {
            break;
        }
        turns += 1;
        holding = flood.iter_mut().find_map(|waiting| waiting.receiver.try_recv().ok()).expect("somebody is served");
    }
    assert!(turns <= 3, "the other flow waited for {turns} of the flood");
}

#[test]
fn seats_come_back_also_of_those_who_gave_up() {
    let level = level(2, 4, 10);
    let wide = place(level.enter(ticket("a", 5)));
    let gone = wait(level.enter(ticket("b", 1)));
    let stays = wait(level.enter(ticket("c", 2)));
    drop(gone);
    assert_eq!(load(&level), (5, 1), "one too wide for the level runs alone");
    drop(wide);
    let seat = called(stays).expect("served");
    assert_eq!(load(&level), (2, 0));
    drop(seat);
    assert_eq!(load(&level), (0, 0));
    assert_eq!(level.snapshot().tallies, Tallies { dispatched: 2, cancelled: 2, ..Tallies::default() });
}

#[test]
fn who_gives_up_lets_others_pass() {
    let level = level(2, 1, 10);
    let _running = place(level.enter(ticket("a", 1)));
    let wide = wait(level.enter(ticket("a", 2)));
    let narrow = wait(level.enter(ticket("a", 1)));
    drop(wide);
    assert!(called(narrow).is_some(), "the seat was free all the time");
}

#[test]
fn a_full_queue_and_a_level_without_queues_refuse() {
    let full = level(1, 1, 1);
    let _first = place(full.enter(ticket("a", 1)));
    let _second = wait(full.enter(ticket("a", 1)));
    assert!(matches!(full.enter(ticket("a", 1)), Entry::Refused("queue-full")));
    let rejecting = level(1, 0, 1);
    let _first = place(rejecting.enter(ticket("a", 1)));
    assert!(matches!(rejecting.enter(ticket("a", 1)), Entry::Refused("concurrency-limit")));
    assert_eq!(rejecting.snapshot().tallies.rejected, 1);
}

#[test]
fn borrowed_seats_call_those_who_wait() {
    let level = level(1, 4, 10);
    let _first = place(level.enter(ticket("a", 1)));
    let second = wait(level.enter(ticket("a", 1)));
    assert_eq!(level.want().demand.high, 2);
    level.limit(2);
    let seat = called(second);
    assert!(seat.is_some());
    level.limit(1);
    assert_eq!(load(&level).0, 2, "nobody is sent away");
    drop(seat);
    let third = wait(level.enter(ticket("b", 1)));
    assert_eq!(load(&level), (1, 1), "lent seats are given back as they come free");
    drop(third);
}

#[tokio::test]
async fn patience_ends() {
    let level = level(1, 4, 10);
    let _first = place(level.enter(ticket("a", 1)));
    let second = wait(level.enter(ticket("a", 1)));
    assert!(second.place(Duration::from_millis(5)).await.is_none());
    let now = level.snapshot();
    assert_eq!((now.waiting, now.tallies.timed_out), (0, 1));
}
