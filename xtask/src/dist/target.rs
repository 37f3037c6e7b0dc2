//! The processors that releases are for, and their names in each kind of package.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    #[value(name = "x86_64")]
    X86,
    #[value(name = "aarch64")]
    Arm,
}

impl Target {
    pub(crate) const ALL: [Self; 2] = [Self::X86, Self::Arm];

    /// The processor of a program, from its ELF header.
    pub(crate) fn of(program: &Path) -> anyhow::Result<Self> {
        let mut header = [0; 20];
        File::open(program)
            .and_then(|mut file| file.read_exact(&mut header))
            .with_context(|| format!("cannot read {}", program.display()))?;
        match (&header[..4], u16::from_le_bytes([header[18], header[19]])) {
            (b"\x7fELF", 62) => Ok(Self::X86),
            (b"\x7fELF", 183) => Ok(Self::Arm),
            _ => bail!("{} is not a Linux program for x86-64 or arm64", program.display()),
        }
    }

    /// The processor of this machine, if packages are made for it.
    pub(crate) fn here() -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.rust().starts_with(std::env::consts::ARCH))
    }

    /// The QEMU program that runs programs for this processor on other machines.
    pub(crate) fn emulator(self) -> &'static str {
        match self {
            Self::X86 => "qemu-x86_64-static",
            Self::Arm => "qemu-aarch64-static",
        }
    }

    /// Rust's name of the target. musl is linked into the program, so the program runs on every
    /// Linux.
    pub(crate) fn rust(self) -> &'static str {
        match self {
            Self::X86 => "x86_64-unknown-linux-musl",
            Self::Arm => "aarch64-unknown-linux-musl",
        }
    }

    /// The tags of a wheel for every Linux. pip before 20.3 supports only the first.
    pub(crate) fn wheel(self) -> [String; 3] {
        let processor = match self {
            Self::X86 => "x86_64",
            Self::Arm => "aarch64",
        };
        ["manylinux2014", "manylinux_2_17", "musllinux_1_1"]
            .map(|system| format!("py3-none-{system}_{processor}"))
    }

    /// The name that Debian and container images use.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::X86 => "amd64",
            Self::Arm => "arm64",
        }
    }
}
