//! How a model's numbers are kept and multiplied, and what is usual where a study does not say.
//!
//! Names only; what each means in bytes and in arithmetic is known to the engine.

use super::{ModelPlan, value};
use crate::Error;
use crate::spec::{
    ActivationDtype, DenseDtype, ExpertDtype, ExpertMode, KvDtype, MatmulPrecision, RunSpec, TargetKind,
};

/// The precisions of one model, and which of its experts are computed. The default is the exact reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dtypes {
    pub activation: ActivationDtype,
    pub expert: ExpertDtype,
    pub expert_mode: ExpertMode,
    pub dense: DenseDtype,
    pub matmul: MatmulPrecision,
    /// `None`: that of the activations.
    pub kv: Option<KvDtype>,
}

impl Default for Dtypes {
    fn default() -> Self {
        Self {
            activation: ActivationDtype::F32,
            expert: ExpertDtype::Native,
            expert_mode: ExpertMode::Routed,
            dense: DenseDtype::Native,
            matmul: MatmulPrecision::F32,
            kv: None,
        }
    }
}

impl ModelPlan {
    pub fn dtypes(&self) -> Dtypes {
        Dtypes {
            activation: self.activation_dtype,
            expert: self.expert_dtype,
            expert_mode: self.expert_mode,
            dense: self.dense_dtype,
            matmul: self.matmul_precision,
            kv: self.kv_dtype,
        }
    }
}

/// Our engine is held to the reference in f32 on the CPU; servers keep their cache in 16 bits unless told otherwise, and
/// on GPUs everyone computes so.
pub fn usual_activations(kind: TargetKind, device: &str) -> ActivationDtype {
    match (kind, device) {
        (TargetKind::Http, _) => ActivationDtype::Bf16,
        (TargetKind::Engine, device) if device != "cpu" => ActivationDtype::Bf16,
        _ => ActivationDtype::F32,
    }
}

/// What is run where neither study nor flags say: on the CPU 16-bit integers, whose distance from f32 is far below
/// that of the weights' own rounding. What multiplies elsewhere, if anything, is not for us to say.
pub fn usual_matmul_precision(kind: TargetKind, device: &str) -> MatmulPrecision {
    match (kind, device) {
        (TargetKind::Engine, "cpu") => MatmulPrecision::Int16,
        _ => MatmulPrecision::F32,
    }
}

/// A server computes what it computes.
pub(super) fn refuse_expert_mode(spec: &RunSpec, kind: TargetKind) -> Result<(), Error> {
    let of_models = || spec.models.iter().find_map(|model| model.expert_mode);
    let given = spec.target.expert_mode.map(|mode| ("target.expert_mode", mode));
    match given.or_else(|| of_models().map(|mode| ("models.expert_mode", mode))) {
        Some((key, mode)) if kind == TargetKind::Http => {
            let expected =
                "only with target.kind = \"engine\": a server decides itself which experts it computes";
            Err(value(key, mode.key(), expected.to_owned()))
        }
        _ => Ok(()),
    }
}

/// For plans of before a key existed, which must keep their hash: what they meant is not written.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::spec::RunSpec;

    fn plan(text: &str) -> Plan {
        RunSpec::from_toml("t", text).unwrap().resolve().unwrap()
    }

    #[test]
    fn a_models_own_precision_comes_before_the_targets() {
        let plan = plan(
            "[target]\ndense_dtype = \"q8_0\"\nkv_dtype = \"bf16\"\npin_threads = true\n\
             [[models]]\nid = \"a\"\n\
             [[models]]\nid = \"b\"\ndense_dtype = \"bf16\"\nmatmul_precision = \"int8\"\nkv_dtype = \"q8_0\"\n",
        );
        let [a, b] = [0, 1].map(|i| plan.models[i].dtypes());
        assert_eq!(
            (a.dense, a.matmul, a.kv),
            (DenseDtype::Q8_0, MatmulPrecision::Int16, Some(KvDtype::Bf16))
        );
        assert_eq!(
            (b.dense, b.matmul, b.kv),
            (DenseDtype::Native, MatmulPrecision::Int8, Some(KvDtype::Q8_0))
        );
        assert!(plan.target.pin_threads);
        let back: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        assert_eq!((back.hash(), &back), (plan.hash(), &plan));
    }

    #[test]
    fn a_plan_of_before_these_keys_keeps_its_hash_and_was_exact() {
        let exact = plan("[target]\nmatmul_precision = \"f32\"\n[[models]]\nid = \"a\"\n");
        let mut json = serde_json::to_value(&exact).unwrap();
        for table in [&json["target"], &json["models"][0]] {
            for key in ["expert_mode", "dense_dtype", "matmul_precision", "kv_dtype", "pin_threads"] {
                assert!(table.get(key).is_none(), "{key}");
            }
        }
        // As this study was planned, and hashed, before the keys were there.
        assert_eq!(exact.hash(), HASH_BEFORE);
        assert_ne!(plan("[[models]]\nid = \"a\"\n").hash(), HASH_BEFORE);
        json["models"][0]["matmul_precision"] = "int8".into();
        let fast: Plan = serde_json::from_value(json).unwrap();
        assert_eq!(fast.models[0].matmul_precision, MatmulPrecision::Int8);
        assert_ne!(fast.hash(), HASH_BEFORE);
    }

    const HASH_BEFORE: &str = "da3e1fb49780faff";

    #[test]
    fn all_experts_are_an_ablation_that_names_itself() {
        let plan = plan(
            "[[models]]\nid = \"dummy:a\"\n[[models]]\nid = \"dummy:a\"\nexpert_mode = \"dense-all\"\n\
             [[models]]\nid = \"dummy:a\"\nlabel = \"b\"\nexpert_mode = \"dense-all\"\n",
        );
        let labels: Vec<_> = plan.models.iter().map(|m| (m.label.as_str(), m.dtypes().expert_mode)).collect();
        let all = ExpertMode::DenseAll;
        assert_eq!(labels, [("a", ExpertMode::Routed), ("a-dense-all", all), ("b", all)]);
        assert_eq!(plan.cells[1].id, "a-dense-all_p128_n32_b1");
        let json = serde_json::to_value(&plan).unwrap();
        assert!(json["models"][0].get("expert_mode").is_none());
        assert_eq!(json["models"][1]["expert_mode"], "dense-all");
        let back: Plan = serde_json::from_value(json).unwrap();
        assert_eq!((back.hash(), &back), (plan.hash(), &plan));
        let long =
            self::plan(&format!("[target]\nexpert_mode = \"dense-all\"\n[[models]]\nid = \"{:a<80}\"", ""));
        let label = &long.models[0].label;
        assert!(label.len() == 64 && label.ends_with("a-dense-all"), "{label}");
        assert_ne!(
            long.models[0].dtypes(),
            Dtypes { expert_mode: ExpertMode::Routed, ..long.models[0].dtypes() }
        );
    }

    #[test]
    fn a_server_has_no_expert_mode_and_unknown_ones_list_the_valid() {
        let refused = |target: &str, model: &str| {
            let text = format!(
                "[target]\nkind = \"http\"\n{target}[[models]]\nid = \"a\"\n{model}[server]\nbase_url = \"http://h\"\n"
            );
            let spec = RunSpec::from_toml("t", &text);
            spec.and_then(|spec| spec.resolve()).unwrap_err().to_string()
        };
        let error = refused("expert_mode = \"dense-all\"\n", "");
        assert!(error.starts_with("`target.expert_mode`") && error.contains("dense-all"), "{error}");
        let error = refused("", "expert_mode = \"routed\"\n");
        assert!(error.starts_with("`models.expert_mode`") && error.contains("engine"), "{error}");
        let error = refused("expert_mode = \"dense_all\"\n", "");
        assert!(error.contains("`routed`") && error.contains("`dense-all`"), "{error}");
        let mock = plan("[target]\nkind = \"mock\"\nexpert_mode = \"dense-all\"\n[[models]]\nid = \"a\"\n");
        assert_eq!(mock.models[0].label, "a-dense-all");
    }

    #[test]
    fn only_the_engine_has_products_of_its_own() {
        for (kind, expected) in [("engine", "Int16"), ("mock", "F32"), ("null", "F32")] {
            let plan = plan(&format!("[target]\nkind = \"{kind}\"\n[[models]]\nid = \"a\"\n"));
            assert_eq!(format!("{:?}", plan.models[0].matmul_precision), expected, "{kind}");
        }
    }
}
