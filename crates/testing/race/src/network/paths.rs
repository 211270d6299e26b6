//! Connections and bytes between pods.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use proxy::Proxier;
use proxy::plan::Endpoint;

use super::lab::{inside, nodes};
use super::{Rows, note, services};
use crate::Options;
use crate::measure::{quantile, sorted};

const SERVICES: u32 = 44_125;
const CONNECTIONS: usize = 2_000;
const PORT: u16 = 8080;

pub fn measure(options: &Options, rows: &mut Rows) -> anyhow::Result<()> {
    let (_wire, nodes) = nodes(2)?;
    let [here, there] = nodes.as_slice() else { anyhow::bail!("two nodes are needed") };
    let (client, _) = here.pod("client")?;
    let (near, near_address) = here.pod("near")?;
    let (far, far_address) = there.pod("far")?;
    for (netns, address) in [(&near, near_address), (&far, far_address), (&there.netns, [192, 0, 2, 2].into())] {
        serve(netns, address)?;
    }
    let count = if options.quick { SERVICES / 10 } else { SERVICES };
    let _proxier = inside(&here.netns, || {
        let mut proxier = Proxier::open(services::config())?;
        let real = services::balanced(0, vec![Endpoint { address: near_address, port: PORT }]);
        let others = (1..count).map(|number| (services::owner(number), services::plan(number, 2)));
        proxier.replace([(services::owner(0), real)].into_iter().chain(others).collect())?;
        Ok(proxier)
    })?;
    let (direct, through) = connect_times(&client, SocketAddr::new(near_address, PORT), SocketAddr::new(services::address(0), 80))?;
    note(rows, "connect to a pod on the node, p50 µs", quantile(&direct, 0.5));
    note(rows, &format!("connect to it through one of {count} Services, p50 µs"), quantile(&through, 0.5));
    note(rows, "the Service over direct, p50 µs", quantile(&through, 0.5) - quantile(&direct, 0.5));
    let length = Duration::from_secs_f64(options.leg_seconds);
    let between = |from: &OwnedFd, to: IpAddr| inside(from, || throughput(SocketAddr::new(to, PORT), length));
    note(rows, "pod to pod on one node, Gbit/s", between(&client, near_address)?);
    note(rows, "pod to pod on another node, Gbit/s", between(&client, far_address)?);
    note(rows, "floor: node to node on the same wire, Gbit/s", between(&here.netns, [192, 0, 2, 2].into())?);
    Ok(())
}

/// Takes what it gets; the threads end with the process.
fn serve(netns: &OwnedFd, address: IpAddr) -> anyhow::Result<()> {
    let listener = inside(netns, || Ok(TcpListener::bind((address, PORT))?))?;
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut buffer = vec![0; 256 << 10];
                while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
            });
        }
    });
    Ok(())
}

/// Sorted microseconds of each, one after the other in turn.
fn connect_times(client: &OwnedFd, direct: SocketAddr, through: SocketAddr) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    inside(client, || {
        let mut times = (Vec::new(), Vec::new());
        for _ in 0..CONNECTIONS {
            times.0.push(connect(direct)?);
            times.1.push(connect(through)?);
        }
        Ok((sorted(&times.0), sorted(&times.1)))
    })
}

fn connect(to: SocketAddr) -> anyhow::Result<f64> {
    let started = Instant::now();
    let stream = TcpStream::connect(to)?;
    let took = started.elapsed().as_secs_f64() * 1e6;
    drop(stream);
    Ok(took)
}

fn throughput(to: SocketAddr, length: Duration) -> anyhow::Result<f64> {
    let mut stream = TcpStream::connect(to)?;
    let buffer = vec![7; 256 << 10];
    let (started, mut sent) = (Instant::now(), 0);
    while started.elapsed() < length {
        sent += stream.write(&buffer)?;
    }
    Ok(sent as f64 * 8.0 / 1e9 / started.elapsed().as_secs_f64())
}
