//! What this machine can compute with. Facts come from /proc and from the vendor's own command line tool, never from a
//! library loaded into this process: a static program cannot load a driver, and a driver's crash must not be ours.

#[cfg(target_os = "macos")]
use crate::process;
use crate::wire::fleet::{Device, WorkerInfo};
use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

/// How long `nvidia-smi` may take; a wedged driver makes it hang.
const NVIDIA_SMI_MAX: Duration = Duration::from_secs(10);
const NVIDIA_SMI_QUERY: &[&str] =
    &["--query-gpu=index,name,memory.total,memory.free,compute_cap", "--format=csv,noheader,nounits"];
/// GPUs of one node.
const GPUS_MAX: usize = 64;

/// The engine this very binary has inside.
pub const BUILT_IN: &str = if cfg!(feature = "cuda") {
    "cuda"
} else if cfg!(target_os = "macos") {
    "metal"
} else {
    "cpu"
};

/// The CPU first, then what GPUs there are. `mapped` bytes of files are in use by our workers: the kernel calls them
/// available, for it could read them again, but a model whose weights are pushed out generates at the disk's speed.
/// `seen` were found the last time.
pub async fn devices(mapped: u64, seen: &[Device]) -> Vec<Device> {
    let mut devices = vec![cpu(mapped)];
    devices.extend(nvidia().await.unwrap_or_else(|why| unheard_of(seen, &why)));
    #[cfg(target_os = "macos")]
    {
        // Unified memory: the GPU's is a part of the machine's.
        let cpu = &devices[0];
        let most = process::gpu_memory_max(cpu.memory_bytes);
        devices.push(Device {
            id: "GPU-0".into(),
            name: cpu.name.clone(),
            device_type: "metal".into(),
            memory_bytes: most,
            memory_free_bytes: cpu.memory_free_bytes.min(most),
            compute_capability: None,
        });
    }
    devices
}

fn cpu(mapped: u64) -> Device {
    let (total, available) = memory(mapped);
    Device {
        id: "CPU-0".into(),
        name: cpu_name(),
        device_type: "cpu".into(),
        memory_bytes: total,
        memory_free_bytes: available,
        compute_capability: None,
    }
}

/// Whether a device's memory is the machine's.
pub fn is_own(device: &Device) -> bool {
    matches!(device.device_type.as_str(), "cpu" | "metal")
}

/// Holds workers to a part of the machine's own memory.
pub fn limit(devices: &mut [Device], max: u64, workers: impl Iterator<Item = WorkerInfo>) {
    let own: Vec<String> =
        devices.iter().filter(|device| is_own(device)).map(|device| device.id.clone()).collect();
    let taken: u64 =
        workers.filter(|worker| own.contains(&worker.device)).map(|worker| worker.memory_bytes).sum();
    for device in devices.iter_mut().filter(|device| is_own(device)) {
        device.memory_bytes = device.memory_bytes.min(max);
        device.memory_free_bytes = device.memory_free_bytes.min(max.saturating_sub(taken));
    }
}

/// A GPU that has a part of the machine's memory for itself has no more free of it than its workers leave, however much the
/// machine has.
pub fn keep_to_its_part(devices: &mut [Device], workers: &[WorkerInfo]) {
    for device in devices.iter_mut().filter(|device| device.device_type == "metal") {
        let its = workers.iter().filter(|worker| worker.device == device.id);
        let taken: u64 = its.map(|worker| worker.memory_bytes).sum();
        device.memory_free_bytes = device.memory_free_bytes.min(device.memory_bytes.saturating_sub(taken));
    }
}

/// Total and available bytes of the machine's memory, or of the control group that limits us.
#[cfg(target_os = "linux")]
fn memory(mapped: u64) -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (total, available) = parse_meminfo(&text);
    let available = available.saturating_sub(mapped);
    match cgroup_limit() {
        Some((limit, used)) if limit < total => (limit, limit.saturating_sub(used).min(available)),
        _ => (total, available),
    }
}

#[cfg(target_os = "macos")]
fn memory(mapped: u64) -> (u64, u64) {
    let (total, available) = process::machine_memory().unwrap_or_default();
    (total, available.saturating_sub(mapped))
}

#[cfg(target_os = "linux")]
fn parse_meminfo(text: &str) -> (u64, u64) {
    let bytes = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
            .map_or(0, |kib| kib << 10)
    };
    (bytes("MemTotal"), bytes("MemAvailable"))
}

/// Limit and use of our own cgroup (v2), where it has a limit.
#[cfg(target_os = "linux")]
fn cgroup_limit() -> Option<(u64, u64)> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let read = |file: &str| {
        let text = std::fs::read_to_string(format!("/sys/fs/cgroup{path}/{file}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    Some((read("memory.max")?, read("memory.current")?))
}

#[cfg(target_os = "macos")]
fn cpu_name() -> String {
    process::cpu_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(not(target_os = "macos"))]
fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    field("model name").or_else(|| field("Hardware")).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(target_arch = "x86_64")]
pub fn cpu_features() -> Vec<String> {
    macro_rules! present {
        ($($name:tt),*) => {
            [$(($name, std::is_x86_feature_detected!($name))),*]
        };
    }
    let all = present!(
        "sse4.2",
        "avx",
        "avx2",
        "bmi2",
        "fma",
        "f16c",
        "avxvnni",
        "avx512f",
        "avx512bw",
        "avx512vnni",
        "avx512bf16"
    );
    all.into_iter().filter(|(_, is_present)| *is_present).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(not(target_arch = "x86_64"))]
pub fn cpu_features() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Features")).unwrap_or_default();
    line.trim_start_matches([' ', '\t', ':']).split_ascii_whitespace().map(str::to_owned).collect()
}

/// GPUs that were there and of which nothing can be learnt now. A node does not lose them by that: its work would fall to the
/// processor unasked. Nothing of them is free until more is known.
fn unheard_of(seen: &[Device], why: &str) -> Vec<Device> {
    let gpus: Vec<&Device> = seen.iter().filter(|device| device.device_type == "cuda").collect();
    if gpus.iter().any(|gpu| gpu.memory_free_bytes > 0) {
        tracing::warn!(reason = why, "nothing was learnt of the GPUs; they are taken to be full until it is");
    }
    gpus.into_iter().map(|gpu| Device { memory_free_bytes: 0, ..gpu.clone() }).collect()
}

/// No GPUs where the tool is not installed, which is the usual case; else what it says, or why it says nothing.
async fn nvidia() -> Result<Vec<Device>, String> {
    let run = tokio::process::Command::new("nvidia-smi")
        .args(NVIDIA_SMI_QUERY)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(NVIDIA_SMI_MAX, run).await {
        Ok(Ok(output)) if output.status.success() => {
            Ok(parse_nvidia(&String::from_utf8_lossy(&output.stdout)))
        }
        Ok(Ok(output)) => Err(format!("nvidia-smi: {}", output.status)),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Ok(Err(error)) => Err(format!("nvidia-smi: {error}")),
        Err(_) => Err(format!("nvidia-smi did not answer within {} s", NVIDIA_SMI_MAX.as_secs())),
    }
}

fn parse_nvidia(text: &str) -> Vec<Device> {
    let device = |line: &str| {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [index, name, total, free, capability] = fields[..] else { return None };
        let bytes = |mib: &str| mib.parse::<u64>().ok().map(|mib| mib << 20);
        Some(Device {
            id: format!("GPU-{}", index.parse::<u32>().ok()?),
            name: name.to_owned(),
            device_type: "cuda".into(),
            memory_bytes: bytes(total)?,
            memory_free_bytes: bytes(free)?,
            compute_capability: Some(capability.to_owned()),
        })
    };
    text.lines().filter_map(device).take(GPUS_MAX).collect()
}

/// The generations of the NVIDIA GPUs among `devices`, as cmake has them in CUDAARCHS: `86-real;90-real`.
pub fn cuda_architectures(devices: &[Device]) -> Option<String> {
    let generation = |device: &Device| {
        let (major, minor) = device.compute_capability.as_deref()?.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    let generations: BTreeSet<_> = devices.iter().filter_map(generation).collect();
    let words: Vec<String> =
        generations.iter().map(|(major, minor)| format!("{major}{minor}-real")).collect();
    (!words.is_empty()).then(|| words.join(";"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       24000 kB\nMemFree:  1 kB\nMemAvailable:   12000 kB\n";
        assert_eq!(parse_meminfo(text), (24_000 << 10, 12_000 << 10));
        assert_eq!(parse_meminfo("nonsense"), (0, 0));
    }

    #[test]
    fn gpus_are_read_from_the_vendors_table_and_nonsense_is_left_out() {
        let text = "0, NVIDIA GeForce RTX 4090, 24564, 23000, 8.9\nNo devices were found\n1, NVIDIA L4, [N/A], 1, 8.9\n";
        let devices = parse_nvidia(text);
        assert_eq!(devices.len(), 1);
        assert_eq!((devices[0].id.as_str(), devices[0].memory_bytes), ("GPU-0", 24_564 << 20));
        assert_eq!(devices[0].compute_capability.as_deref(), Some("8.9"));
    }

    #[test]
    fn a_gpu_with_a_part_of_the_machines_memory_has_free_what_its_workers_leave_of_that() {
        let worker = |device: &str, bytes: u64| -> WorkerInfo {
            serde_json::from_value(serde_json::json!({
                "worker_id": "w", "hive": "h", "state": "ready", "model": "m", "worker": "metal", "device": device,
                "slots_total": 1, "slots_busy": 0, "ctx": 1, "memory_bytes": bytes, "pid": null, "started_at": 0,
                "last_used": 0, "pinned": false, "url": "",
            }))
            .unwrap()
        };
        let machine = Device { memory_bytes: 64, memory_free_bytes: 20, ..cpu(0) };
        let gpu =
            Device { id: "GPU-0".into(), device_type: "metal".into(), memory_bytes: 48, ..machine.clone() };
        let free = |workers: &[WorkerInfo]| {
            let mut devices = [machine.clone(), gpu.clone()];
            keep_to_its_part(&mut devices, workers);
            devices.map(|device| device.memory_free_bytes)
        };
        assert_eq!(free(&[]), [20, 20], "the machine has no more");
        assert_eq!(free(&[worker("GPU-0", 40), worker("CPU-0", 9)]), [20, 8]);
        assert_eq!(free(&[worker("GPU-0", 50)]), [20, 0]);
    }

    #[test]
    fn gpus_that_nothing_is_learnt_of_are_still_there_and_full() {
        let seen = [vec![cpu(0)], parse_nvidia("0, NVIDIA L4, 24564, 23000, 8.9\n")].concat();
        let told = unheard_of(&seen, "nvidia-smi: exit status: 15");
        assert_eq!(told, [Device { memory_free_bytes: 0, ..seen[1].clone() }]);
        assert_eq!(unheard_of(&seen[..1], "nvidia-smi: exit status: 9"), []);
    }

    #[test]
    fn a_build_is_told_each_generation_once_and_nothing_where_none_is_known() {
        let gpu = |index: u32, capability: &str| format!("{index}, NVIDIA, 24564, 23000, {capability}\n");
        let told = |text: String| cuda_architectures(&parse_nvidia(&text));
        let mixed = [gpu(0, "12.0"), gpu(1, "8.6"), gpu(2, "12.0"), gpu(3, "[N/A]")].concat();
        assert_eq!(told(mixed).as_deref(), Some("86-real;120-real"));
        assert_eq!(told(gpu(0, "[N/A]")), None);
        assert_eq!(cuda_architectures(&[cpu(0)]), None);
    }
}
