//! What sharing work costs: an empty job, and the regions of a decode step beside a compile.
//!
//! `cargo bench -p bench-kernels --bench pool [-- THREADS]`

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::hint::black_box;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use bench_kernels::peaks::{PeakKind, measure};
use bench_kernels::pool::{Pool, PoolOptions};
use bench_kernels::{Exec, Variant, bandwidth};

/// Jobs of one decode step, and what one costs all threads together.
const REGIONS: usize = 120;
const REGION: Duration = Duration::from_millis(1);
/// Tasks of such a job.
const TASKS: usize = 32;

fn main() {
    if std::env::args().any(|a| a == "--busy") {
        busy();
    }
    peaks();
    let threads = std::env::args().find_map(|a| a.parse().ok());
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    for pin in [false, true] {
        let pool = Pool::new(PoolOptions { threads, pin }).unwrap();
        let _here = pool.pin_caller().unwrap();
        println!("{} threads, pinned {pin}, load {load}", pool.threads());
        empty_jobs(&pool);
        regions(&pool, 0);
        regions(&pool, pool.threads());
    }
}

/// Peaks of one thread and of all, and what is read.
fn peaks() {
    for variant in Variant::available() {
        for exec in [Exec::serial(variant), Exec::new(variant, Pool::shared())] {
            for kind in PeakKind::ALL {
                if let Some(peak) = measure(&exec, kind, 21, 0.01) {
                    let (median, fastest) = (peak.median_ops_s() / 1e9, peak.fastest_ops_s() / 1e9);
                    let threads = exec.threads();
                    println!(
                        "{variant:?}, {threads} threads, {}: {median:.0} Gop/s, fastest {fastest:.0}",
                        kind.name()
                    );
                }
            }
        }
    }
    for threads in [1, Pool::shared().threads()] {
        let read = bandwidth::measure(threads, 256 << 20, 21).unwrap();
        let (median, fastest) = (read.read_median_bytes_s() / 1e9, read.read_bytes_s[20] / 1e9);
        println!("{threads} threads read {median:.1} GB/s, fastest {fastest:.1}");
    }
}

/// Time per job when tasks do nothing, back to back, after the gap of a norm, and after the workers fell asleep.
fn empty_jobs(pool: &Pool) {
    for gap_us in [0, 10, 40, 100, 1000] {
        let mut times: Vec<f64> = (0..if gap_us < 100 { 20_000 } else { 1000 })
            .map(|_| {
                spin(Duration::from_micros(gap_us));
                let start = Instant::now();
                pool.run(8, &|i| {
                    black_box(i);
                });
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let at = |q: f64| times[(q * (times.len() - 1) as f64) as usize];
        println!(
            "  empty job after {gap_us:4} us: median {:5.2} us, 90 % {:5.2}, 99 % {:6.2}",
            at(0.5),
            at(0.9),
            at(0.99)
        );
    }
}

/// Steps of 120 regions beside `busy` processes that want all they can get, held against as many threads that do
/// the same work without ever waiting for each other: the fair share, whatever else runs on the machine.
fn regions(pool: &Pool, busy: usize) {
    let children: Vec<Child> = (0..busy)
        .map(|_| Command::new(std::env::current_exe().unwrap()).arg("--busy").spawn().unwrap())
        .collect();
    if busy > 0 {
        std::thread::sleep(Duration::from_millis(300));
    }
    let loops = calibrate();
    let threads = pool.threads();
    let step = || {
        for _ in 0..REGIONS {
            pool.run(TASKS, &|_| work(loops));
            work(loops / 4);
        }
    };
    // The serial part has one thread's share in both.
    let free = || {
        let own = REGIONS as u64 * loops * TASKS as u64 / threads as u64;
        std::thread::scope(|scope| {
            (1..threads).for_each(|_| drop(scope.spawn(move || work(own))));
            work(own + REGIONS as u64 * loops / 4);
        });
    };
    let ms = |run: &dyn Fn()| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64() * 1e3
    };
    let (mut steps, mut frees): (Vec<f64>, Vec<f64>) = (0..30).map(|_| (ms(&step), ms(&free))).unzip();
    for mut child in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    steps.sort_by(f64::total_cmp);
    frees.sort_by(f64::total_cmp);
    println!(
        "  {REGIONS} regions beside {busy} busy: best {:.1} ms, median {:.1}, worst {:.1}; without waiting {:.1}, {:.1}, {:.1}; share {:.2}",
        steps[0],
        steps[15],
        steps[29],
        frees[0],
        frees[15],
        frees[29],
        frees[15] / steps[15]
    );
}

fn work(loops: u64) {
    let mut x = 1_u64;
    for i in 0..loops {
        x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i));
    }
    black_box(x);
}

/// Loops of [`work`] that take one task's time on a core of one's own.
fn calibrate() -> u64 {
    let time = || {
        let start = Instant::now();
        work(10_000);
        start.elapsed().as_secs_f64()
    };
    let best = (0..2000).map(|_| time()).fold(f64::INFINITY, f64::min);
    (REGION.as_secs_f64() / TASKS as f64 / best * 1e4) as u64
}

fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Until killed, or as long as a forgotten child may last.
fn busy() -> ! {
    let start = Instant::now();
    while start.elapsed() < Duration::from_mins(1) {
        work(1 << 20);
    }
    std::process::exit(0)
}
