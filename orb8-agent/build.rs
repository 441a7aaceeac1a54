//! Refuses to build an agent with an eBPF object that is missing, empty or made for other records.
use std::{env, error::Error, fs, path::Path};

use object::{Architecture, Object as _, ObjectSection as _};

const FAMILIES: &[&str] = &["cuda", "network", "syscall"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=ebpf");
    let directory = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("ebpf");
    for family in FAMILIES {
        let path = directory.join(family).with_extension("o");
        check(&path).map_err(|error| format!("{}: {error}; run `cargo xtask build-ebpf`", path.display()))?;
    }
    Ok(())
}

fn check(path: &Path) -> Result<(), Box<dyn Error>> {
    let bytes = fs::read(path)?;
    let object = object::File::parse(&*bytes)?;
    if object.architecture() != Architecture::Bpf {
        return Err(format!("an object for {:?}, not for BPF", object.architecture()).into());
    }
    let abi = object
        .section_by_name("orb8_abi")
        .ok_or("it has no section orb8_abi")?;
    let abi = abi.data()?.try_into().map(u32::from_le_bytes)?;
    if abi != orb8_common::ABI_VERSION {
        return Err(format!(
            "its records are of version {abi}, the agent's of {}",
            orb8_common::ABI_VERSION
        )
        .into());
    }
    Ok(())
}
