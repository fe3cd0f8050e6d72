//! MXFP4 and rotary embedding against the unit goldens.

#![allow(clippy::print_stdout)] // the largest difference of each comparison

use bench_engine::config::RopeScaling;
use bench_engine::rope::RotaryEmbedding;
use bench_kernels::mxfp4;

use crate::golden_model::open;

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().map(|v| *v as u8).collect()
}

/// Equal bits: infinities and the sign of zero count.
fn assert_same(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    assert!(!found.is_empty(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert_eq!(f.to_bits(), e.to_bits(), "{what}[{i}]: {f}, expected {e}");
    }
}

#[test]
fn mxfp4_decodes_to_the_exact_values() {
    let gold = open("units/mxfp4.safetensors");
    assert_same("fp4.value", &mxfp4::FP4_VALUES, gold.get("fp4.value").unwrap());
    for name in ["table", "random"] {
        let expected = gold.get(&format!("{name}.exact")).unwrap();
        let mut found = vec![f32::NAN; expected.len()];
        let (blocks, scales) =
            (gold.get(&format!("{name}.blocks")).unwrap(), gold.get(&format!("{name}.scales")).unwrap());
        mxfp4::dequantize(&bytes(blocks), &bytes(scales), &mut found).unwrap();
        assert_same(name, &found, expected);
    }
    println!("mxfp4: all {} codes and scales equal, bit for bit", 256 * 32 + 2 * 6 * 96);
}

#[test]
fn the_quantizer_makes_the_codes_of_the_reference() {
    let gold = open("units/mxfp4.safetensors");
    let (blocks, scales) =
        (bytes(gold.get("quantize.blocks").unwrap()), bytes(gold.get("quantize.scales").unwrap()));
    let (mut found_blocks, mut found_scales) = (vec![0; blocks.len()], vec![0; scales.len()]);
    mxfp4::quantize(gold.get("quantize.input").unwrap(), &mut found_blocks, &mut found_scales).unwrap();
    assert_eq!((found_scales, found_blocks), (scales, blocks));
}

fn largest(found: &[f32], expected: &[f32], difference: impl Fn(f32, f32) -> f32) -> f32 {
    assert_eq!(found.len(), expected.len());
    assert!(!found.is_empty());
    found.iter().zip(expected).map(|(f, e)| difference(*f, *e)).fold(0.0, f32::max)
}

fn relative(found: f32, expected: f32) -> f32 {
    ((found - expected) / expected).abs()
}

#[test]
fn yarn_is_that_of_gpt_oss() {
    let gold = open("units/rope.safetensors");
    let yarn = |truncate| RopeScaling::Yarn {
        factor: 32.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max_position_embeddings: 4096,
        truncate,
    };
    let rope = RotaryEmbedding::new(64, 150_000.0, &yarn(false));
    let frequencies = largest(rope.inv_freq(), gold.get("yarn.inv_freq_f64").unwrap(), relative);
    let factor = (rope.attention_factor() - gold.get("yarn.attention_factor").unwrap()[0]).abs();
    println!("yarn: frequencies {frequencies:.1e} (relative), attention factor {factor:.1e}");
    assert!(frequencies < 1e-6 && factor < 1e-6);
    assert!(largest(rope.inv_freq(), gold.get("yarn.inv_freq").unwrap(), relative) < 1e-6);
    let truncated = RotaryEmbedding::new(64, 150_000.0, &yarn(true));
    assert!(largest(truncated.inv_freq(), gold.get("yarn.inv_freq_if_truncated").unwrap(), relative) < 1e-6);

    for (row, position) in gold.get("yarn.positions").unwrap().iter().enumerate() {
        let (cos, sin) = rope.cos_sin(std::iter::once(*position as usize));
        // Angles are f32: their error grows with the position.
        let tolerance = if *position <= 127.0 {
            2e-5
        } else if *position <= 4096.0 {
            1e-3
        } else {
            1e-2
        };
        for (name, found) in [("cos", &cos), ("sin", &sin)] {
            for reference in ["", "_f64"] {
                let expected = &gold.get(&format!("yarn.{name}{reference}")).unwrap()[row * 32..][..32];
                let difference = largest(found, expected, |f, e| (f - e).abs());
                assert!(difference < tolerance, "{name}{reference} at {position}: {difference}");
            }
        }
    }
}

#[test]
fn plain_and_llama3_frequencies_are_those_of_the_published_models() {
    let gold = open("units/rope.safetensors");
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    for (name, theta, scaling) in [
        ("Qwen3-32B", 1e6, RopeScaling::None),
        ("Yi-34B", 5e6, RopeScaling::None),
        ("Llama-3.1-70B", 5e5, llama3),
    ] {
        let rope = RotaryEmbedding::new(128, theta, &scaling);
        let difference = largest(rope.inv_freq(), gold.get(&format!("{name}.inv_freq")).unwrap(), relative);
        println!("{name}: frequencies {difference:.1e} (relative)");
        assert!(difference < 1e-6, "{name}");
        assert_eq!(rope.attention_factor(), 1.0);
    }
}
