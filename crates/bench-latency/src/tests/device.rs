//! Batches whose times a device tells too: where both agree nothing is said, else which phase is off and by how much.

use super::{plan, request};
use crate::Analysis;
use bench_core::memory::{GpuTrace, MemoryTrace};
use bench_core::verdict::Verdict;

/// The device's times of one batch; `None` where its marks could not be read.
type Told = Option<[f64; 2]>;

/// A batch of two: sent together, first tokens after 9 and 10 ms, last ones after 105 and 110.
fn verdict(device: &[Told], last: &str) -> Verdict {
    let plan = plan(device.len() as u32, 2);
    let mut analysis = Analysis::new(&plan, &plan.cells[0], "engine");
    analysis.trial(0, &plan.cells[0].id).unwrap();
    for (repeat, times) in (0..).zip(device) {
        let first = "i@0 s@1000000 t1@10000000 t3@106000000 c16:4@106000000 d@106000000";
        analysis.request(&request(repeat, 0, first)).unwrap();
        analysis.request(&request(repeat, 1, last)).unwrap();
        let [device_prefill_ms, device_decode_ms] = times.map_or([None; 2], |times| times.map(Some));
        let trace = GpuTrace { device_prefill_ms, device_decode_ms, ..GpuTrace::default() };
        analysis.memory(&MemoryTrace { repeat, device: Some(Box::new(trace)), ..MemoryTrace::default() });
    }
    analysis.finish(false, None).unwrap().summary.verdict
}

const WELL: &str = "i@0 s@1500000 t1@11000000 t3@111000000 c16:4@111000000 d@111000000";

#[test]
fn times_that_agree_need_no_word() {
    // 10 and 100 ms on the host; a millisecond is nothing of the one, two are nothing of the other.
    for times in [[10.0, 100.0], [9.1, 101.9], [10.9, 98.1]] {
        assert_eq!(verdict(&[Some(times)], WELL), Verdict::default(), "{times:?}");
    }
    assert_eq!(verdict(&[None, None], WELL), Verdict::default());
}

#[test]
fn a_difference_is_told_with_its_phase_and_leaves_the_cell_valid() {
    let told = verdict(&[Some([10.0, 100.0]), Some([8.0, 100.0]), Some([10.0, 60.0]), None], WELL);
    assert!(told.is_valid());
    let text = told.reason_text();
    assert!(
        text.starts_with(
            "host and device disagree in 2 of 3 batches: decode took 100.000 ms by the host's stamps and 60.000 ms"
        ),
        "{text}"
    );
}

#[test]
fn a_batch_that_failed_has_no_times_to_be_held_against() {
    let failed = verdict(&[Some([10.0, 5.0])], "i@0 s@1500000 t1@11000000 x@20000000");
    assert!(!failed.reason_text().contains("disagree"), "{failed:?}");
}
