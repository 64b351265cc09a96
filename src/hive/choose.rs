//! Which engine and which device a wanted worker gets. Pure: what was asked and what the node has, to a pair or a
//! refusal that says what to do. GPU work never falls to the CPU unasked, and a foreign engine serves only those who
//! name it, or a kind that nothing else here can do.

use crate::hive::engines::{Engine, Program};
use crate::wire::fleet::Device;
use crate::wire::operation::WorkerSpawn;
use crate::wire::{Code, Failure, VERSION};

pub const KINDS: &[&str] = &["cpu", "cuda", "metal"];

/// The engine and the device for it.
pub fn choose<'n>(
    want: &WorkerSpawn,
    engines: &'n [Engine],
    devices: &'n [Device],
) -> Result<(&'n Engine, &'n Device), Failure> {
    let engine = match named_engine(want) {
        Some(id) => engines
            .iter()
            .find(|engine| engine.id.eq_ignore_ascii_case(id))
            .ok_or_else(|| unknown_engine(id, engines))?,
        None => {
            let kind = match asked_kind(want, devices) {
                Some(kind) => kind,
                None => best_kind(engines, devices),
            };
            best_of_kind(engines, &kind).ok_or_else(|| no_engine(&kind, engines, devices))?
        }
    };
    Ok((engine, device_for(want, engine, devices)?))
}

/// Engines a GPU of this node waits for: what a person should be told when work goes to the CPU.
pub fn unused_gpu<'n>(engine: &Engine, engines: &[Engine], devices: &'n [Device]) -> Option<&'n Device> {
    let is_served = |device: &Device| engines.iter().any(|engine| engine.kind == device.device_type);
    let gpu = devices.iter().find(|device| device.device_type != "cpu" && !is_served(device));
    gpu.filter(|_| engine.kind == "cpu")
}

fn is_kind(word: &str) -> bool {
    KINDS.iter().any(|kind| kind.eq_ignore_ascii_case(word))
}

fn named_engine(want: &WorkerSpawn) -> Option<&str> {
    want.worker.as_deref().filter(|word| !is_kind(word))
}

fn asked_kind(want: &WorkerSpawn, devices: &[Device]) -> Option<String> {
    let words = [want.worker.as_deref(), want.device.as_deref()];
    let by_word = words.into_iter().flatten().find(|word| is_kind(word)).map(str::to_ascii_lowercase);
    // A device that is named by its id brings its kind with it.
    by_word.or_else(|| {
        let named = want.device.as_deref()?;
        let device = devices.iter().find(|device| device.id.eq_ignore_ascii_case(named))?;
        Some(device.device_type.clone())
    })
}

/// A GPU's, where there are both the GPU and an engine of ours for it.
fn best_kind(engines: &[Engine], devices: &[Device]) -> String {
    let is_ready = |kind: &&&str| {
        devices.iter().any(|device| device.device_type == **kind)
            && engines.iter().any(|engine| engine.kind == **kind && !engine.is_foreign())
    };
    let built_in = engines.first().map_or("cpu", |engine| engine.kind.as_str());
    ["cuda", "metal"].iter().find(is_ready).map_or(built_in, |kind| kind).to_owned()
}

/// One that was built for this very node, if it is of our version; else the one inside; else another project's.
fn best_of_kind<'n>(engines: &'n [Engine], kind: &str) -> Option<&'n Engine> {
    let rank = |engine: &&Engine| match &engine.program {
        Program::Ours(_) if is_ours(&engine.version) => 0,
        Program::BuiltIn => 1,
        Program::Ours(_) => 2,
        Program::Foreign { .. } => 3,
    };
    engines.iter().filter(|engine| engine.kind == kind).min_by_key(rank)
}

/// Whether a package, `pkgver-pkgrel`, is of this program's version. A package's version has no `-` of its own.
fn is_ours(package: &str) -> bool {
    package.rsplit_once('-').is_some_and(|(version, _)| version == VERSION.replace('-', "_"))
}

fn device_for<'n>(want: &WorkerSpawn, engine: &Engine, devices: &'n [Device]) -> Result<&'n Device, Failure> {
    let unavailable = |message: String| Err(Failure::new(Code::BackendUnavailable, message));
    let kind = &engine.kind;
    let of_kind: Vec<&Device> = devices.iter().filter(|device| device.device_type == *kind).collect();
    let named = want.device.as_deref().filter(|word| !is_kind(word));
    let chosen = match named {
        None => of_kind.iter().max_by_key(|device| device.memory_free_bytes).copied(),
        Some(word) => {
            let by_number = word.parse::<usize>().ok().and_then(|index| of_kind.get(index)).copied();
            by_number.or_else(|| devices.iter().find(|device| device.id.eq_ignore_ascii_case(word)))
        }
    };
    match chosen {
        Some(device) if device.device_type == *kind => Ok(device),
        Some(device) => unavailable(format!(
            "{} is a `{}` device, and {} is an engine for `{kind}`",
            device.id, device.device_type, engine.id
        )),
        None => {
            let ids: Vec<&str> = devices.iter().map(|device| device.id.as_str()).collect();
            unavailable(format!(
                "no device `{}` here; there are: {}",
                want.device.as_deref().unwrap_or(kind),
                ids.join(", ")
            ))
        }
    }
}

fn no_engine(kind: &str, engines: &[Engine], devices: &[Device]) -> Failure {
    let has_device = devices.iter().any(|device| device.device_type == kind);
    let message = if has_device {
        format!(
            "this node has a `{kind}` device, but no engine for it; build one with `rbee worker install llm-worker-rbee-{kind}`"
        )
    } else {
        format!("this node has no `{kind}` device; its engines are: {}", list(engines))
    };
    Failure::new(Code::BackendUnavailable, message)
}

fn unknown_engine(id: &str, engines: &[Engine]) -> Failure {
    Failure::new(
        Code::BackendUnavailable,
        format!(
            "no worker `{id}` is installed here; there are: {}. What can be installed: `rbee worker available`",
            list(engines)
        ),
    )
}

fn list(engines: &[Engine]) -> String {
    let names = engines.iter().map(|engine| match engine.program {
        Program::BuiltIn => format!("{} ({})", engine.id, engine.kind),
        _ => engine.id.clone(),
    });
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::catalog::Serve;

    fn device(id: &str, kind: &str, free: u64) -> Device {
        Device {
            id: id.into(),
            name: String::new(),
            device_type: kind.into(),
            memory_bytes: free,
            memory_free_bytes: free,
            compute_capability: None,
        }
    }

    fn engine(id: &str, kind: &str, version: &str, program: Program) -> Engine {
        Engine { id: id.into(), kind: kind.into(), version: version.into(), program }
    }

    fn built_in(kind: &str) -> Engine {
        engine("built-in", kind, VERSION, Program::BuiltIn)
    }

    fn ours(kind: &str, version: &str) -> Engine {
        let package = format!("{version}-1");
        engine(&format!("llm-worker-rbee-{kind}"), kind, &package, Program::Ours("/w".into()))
    }

    fn foreign(kind: &str) -> Engine {
        let serve = Serve { argv: vec![], key_env: None, health: "/health".into(), api: "openai".into() };
        engine("llama-cpp-server", kind, "1", Program::Foreign { binary: "/s".into(), serve })
    }

    fn want(worker: Option<&str>, device: Option<&str>) -> WorkerSpawn {
        WorkerSpawn {
            model: "m".into(),
            worker: worker.map(Into::into),
            device: device.map(Into::into),
            slots: None,
            ctx: None,
            pin: false,
        }
    }

    fn chosen(want: &WorkerSpawn, engines: &[Engine], devices: &[Device]) -> Result<(String, String), Code> {
        match choose(want, engines, devices) {
            Ok((engine, device)) => Ok((engine.id.clone(), device.id.clone())),
            Err(failure) => Err(failure.code),
        }
    }

    fn pair(engine: &str, device: &str) -> Result<(String, String), Code> {
        Ok((engine.into(), device.into()))
    }

    #[test]
    fn an_engine_built_for_the_node_goes_before_the_one_inside_if_it_is_of_our_version() {
        let devices = [device("CPU-0", "cpu", 1)];
        let native = [built_in("cpu"), foreign("cpu"), ours("cpu", VERSION)];
        assert_eq!(chosen(&want(None, None), &native, &devices), pair("llm-worker-rbee-cpu", "CPU-0"));
        assert_eq!(chosen(&want(Some("cpu"), None), &native, &devices), pair("llm-worker-rbee-cpu", "CPU-0"));
        let old = [built_in("cpu"), ours("cpu", "0.0.1")];
        assert_eq!(chosen(&want(Some("CPU"), None), &old, &devices), pair("built-in", "CPU-0"));
        let inside = want(Some("built-in"), None);
        assert_eq!(chosen(&inside, &native, &devices), pair("built-in", "CPU-0"));
        let named = want(Some("llm-worker-rbee-cpu"), None);
        assert_eq!(chosen(&named, &old, &devices), pair("llm-worker-rbee-cpu", "CPU-0"));
    }

    #[test]
    fn a_foreign_engine_serves_who_names_it_or_a_kind_that_nothing_else_can_do() {
        let devices = [device("CPU-0", "cpu", 1), device("GPU-0", "cuda", 1)];
        let engines = [built_in("cpu"), foreign("cuda")];
        assert_eq!(chosen(&want(None, None), &engines, &devices), pair("built-in", "CPU-0"));
        assert_eq!(chosen(&want(Some("cuda"), None), &engines, &devices), pair("llama-cpp-server", "GPU-0"));
        let named = want(Some("llama-cpp-server"), None);
        assert_eq!(chosen(&named, &engines, &devices), pair("llama-cpp-server", "GPU-0"));
    }

    #[test]
    fn a_macs_own_engine_computes_on_its_processor_where_that_is_asked_for() {
        let devices = [device("CPU-0", "cpu", 9), device("GPU-0", "metal", 1)];
        let engines = [built_in("metal"), built_in("cpu")];
        assert_eq!(chosen(&want(None, None), &engines, &devices), pair("built-in", "GPU-0"));
        for (worker, asked) in [(None, Some("cpu")), (None, Some("CPU-0")), (Some("cpu"), None)] {
            assert_eq!(chosen(&want(worker, asked), &engines, &devices), pair("built-in", "CPU-0"));
        }
    }

    #[test]
    fn gpu_work_is_never_given_to_the_cpu_unasked() {
        let devices = [device("CPU-0", "cpu", 1), device("GPU-0", "cuda", 1)];
        let engines = [built_in("cpu")];
        for asked in ["cuda", "GPU-0", "gpu-0"] {
            let refused = chosen(&want(None, Some(asked)), &engines, &devices);
            assert_eq!(refused, Err(Code::BackendUnavailable), "{asked}");
        }
        for worker in ["metal", "cuda", "vllm"] {
            let refused = chosen(&want(Some(worker), None), &engines, &devices);
            assert_eq!(refused, Err(Code::BackendUnavailable), "{worker}");
        }
        assert_eq!(chosen(&want(None, Some("7")), &engines, &devices), Err(Code::BackendUnavailable));
        let on_wrong = want(Some("cpu"), Some("GPU-0"));
        assert_eq!(chosen(&on_wrong, &engines, &devices), Err(Code::BackendUnavailable));
        assert!(unused_gpu(&engines[0], &engines, &devices).is_some());
        let with_gpu = [built_in("cpu"), ours("cuda", VERSION)];
        assert_eq!(chosen(&want(None, None), &with_gpu, &devices), pair("llm-worker-rbee-cuda", "GPU-0"));
        assert!(unused_gpu(&with_gpu[1], &with_gpu, &devices).is_none());
    }
}
