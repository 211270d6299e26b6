//! `/debug/api_priority_and_fairness/`: levels, queues and requests as tables for people, in upstream's columns.
//!
//! Virtual time is told in seats; requests of exempt levels are counted, not listed.
//! Source: `apiserver/pkg/util/flowcontrol/apf_controller_debug.go`.

use auth::UserInfo;
use http::{Response, StatusCode};

use super::level::{Snapshot, Ticket};
use crate::Inner;
use crate::context::Context;
use crate::reply::{self, Body};
use crate::request::RequestInfo;

const LEVELS: [&str; 10] = [
    "PriorityLevelName",
    "ActiveQueues",
    "IsIdle",
    "IsQuiescing",
    "WaitingRequests",
    "ExecutingRequests",
    "DispatchedRequests",
    "RejectedRequests",
    "TimedoutRequests",
    "CancelledRequests",
];
const QUEUES: [&str; 9] = [
    "PriorityLevelName",
    "Index",
    "PendingRequests",
    "ExecutingRequests",
    "SeatsInUse",
    "NextDispatchR",
    "InitialSeatsSum",
    "MaxSeatsSum",
    "TotalWorkSum",
];
const REQUESTS: [&str; 10] = [
    "PriorityLevelName",
    "FlowSchemaName",
    "QueueIndex",
    "RequestIndexInQueue",
    "FlowDistingsher",
    "ArriveTime",
    "InitialSeats",
    "FinalSeats",
    "AdditionalLatency",
    "StartTime",
];
const DETAILS: [&str; 8] = ["UserName", "Verb", "APIPath", "Namespace", "Name", "APIVersion", "Resource", "SubResource"];
/// Between the parts of [`details`].
const PART: char = '\0';

type Row = Vec<String>;

/// `None` where the path is none of these.
pub fn respond(server: &Inner, context: &Context) -> Option<Response<Body>> {
    let table = context.info.path.strip_prefix("/debug/api_priority_and_fairness/")?;
    let plan = server.flow.plan(&server.registry.caches);
    let levels: Vec<(&str, Snapshot)> = plan.levels.values().map(|level| (level.name.as_str(), level.snapshot())).collect();
    let rows = match table {
        "dump_priority_levels" => headed(&LEVELS, levels.iter().map(|(name, level)| level_row(name, level))),
        "dump_queues" => headed(&QUEUES, levels.iter().flat_map(|(name, level)| queue_rows(name, level))),
        "dump_requests" => {
            let detailed = context.query.get("includeRequestDetails").is_some_and(|value| !value.is_empty());
            let columns: Vec<&str> = REQUESTS.iter().chain(DETAILS.iter().filter(|_| detailed)).copied().collect();
            headed(&columns, levels.iter().flat_map(|(name, level)| request_rows(name, level, detailed)))
        }
        _ => return None,
    };
    Some(reply::text(StatusCode::OK, aligned(&rows)))
}

/// What a request is, for the last columns.
pub fn details(user: &UserInfo, info: &RequestInfo) -> String {
    let version = if info.group.is_empty() { info.version.clone() } else { format!("{}/{}", info.group, info.version) };
    let parts: [&str; 8] =
        [&user.username, &info.verb, &info.path, &info.namespace, &info.name, &version, &info.resource, &info.subresource];
    parts.join("\0")
}

fn headed(columns: &[&str], rows: impl Iterator<Item = Row>) -> Vec<Row> {
    std::iter::once(columns.iter().map(|column| (*column).to_owned()).collect()).chain(rows).collect()
}

fn level_row(name: &str, level: &Snapshot) -> Row {
    let active = level.queues.iter().filter(|queue| !queue.waiting.is_empty()).count();
    let idle = level.waiting == 0 && level.executing == 0;
    let tallies = level.tallies;
    let mut row = vec![name.to_owned(), active.to_string(), idle.to_string(), false.to_string()];
    row.extend([level.waiting, level.executing].map(|count| count.to_string()));
    row.extend([tallies.dispatched, tallies.rejected, tallies.timed_out, tallies.cancelled].map(|count| count.to_string()));
    row
}

fn queue_rows(name: &str, level: &Snapshot) -> Vec<Row> {
    let row = |(index, queue): (usize, &super::level::QueueSnapshot)| {
        let wanted: usize = queue.waiting.iter().map(|ticket| ticket.seats).sum();
        let mut row = vec![name.to_owned(), index.to_string(), queue.waiting.len().to_string()];
        row.extend([queue.executing, queue.seats].map(|count| count.to_string()));
        row.push(virtual_time(queue.served));
        row.extend([wanted, wanted].map(|count| count.to_string()));
        row.push(virtual_time(wanted as u64));
        row
    };
    level.queues.iter().enumerate().map(row).collect()
}

fn virtual_time(seats: u64) -> String {
    format!("{seats}.00000000ss")
}

fn request_rows(name: &str, level: &Snapshot, detailed: bool) -> Vec<Row> {
    let row = |queue: Option<usize>, place: Option<usize>, ticket: &Ticket, started: Option<jiff::Timestamp>| {
        let index = |at: Option<usize>| at.map_or_else(|| "-1".to_owned(), |at| at.to_string());
        // Go's zero time: it has not started.
        let started = started.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |at| at.to_string());
        let mut row = vec![name.to_owned(), ticket.counted.schema().to_owned(), index(queue), index(place), ticket.flow.clone()];
        row.extend([ticket.arrived.to_string(), ticket.seats.to_string(), "0".to_owned(), "0s".to_owned(), started]);
        if detailed {
            row.extend(ticket.details.split(PART).map(str::to_owned));
        }
        row
    };
    let queues = level.queues.iter().enumerate();
    let waiting = queues.flat_map(|(at, queue)| queue.waiting.iter().enumerate().map(move |(place, ticket)| (at, place, ticket)));
    let waiting = waiting.map(|(at, place, ticket)| row(Some(at), Some(place), ticket, None));
    let running = level.running.iter().map(|(queue, ticket, started)| row(*queue, None, ticket, Some(*started)));
    waiting.chain(running).collect()
}

/// Columns with commas, padded to the widest of their cells as Go's `tabwriter` does with these rows.
fn aligned(rows: &[Row]) -> String {
    const WIDTH_MIN: usize = 8;
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count() + 2).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(|column| width(column).max(WIDTH_MIN)).collect();
    let mut out = String::new();
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            match widths.get(at).filter(|_| at + 1 < columns) {
                Some(width) => out.push_str(&format!("{:width$}", format!("{cell},"))),
                None => out.push_str(cell),
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_one_below_the_other() {
        let rows: Vec<Row> = [["Name", "Index"], ["workload-high", "1"]].map(|row| row.map(str::to_owned).to_vec()).into();
        assert_eq!(aligned(&rows), "Name,          Index\nworkload-high, 1\n");
    }
}
