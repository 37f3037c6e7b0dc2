//! Builds components from C, Python and JavaScript, with tools that this module installs.
//!
//! A component is built again when its sources, its tools or this file change.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::command::{capture, run};
use crate::project::Project;
use crate::setup::{
    cargo_programs, link, needed, npm_packages, python_packages, python_wheels, rust_programs,
};

/// The test programs, each in three languages: `LANGUAGE_PROGRAM.wasm`.
const PROGRAMS: [&str; 2] = ["files", "observe"];

/// The test guests that use the package `task_host_guest`. Each is a directory beside the programs.
const PYTHON_PROJECTS: [&str; 2] = ["python-guest", "python-planner"];

/// Builds the test guests that are not in Rust.
pub(crate) fn guests(project: &Project) -> anyhow::Result<Vec<PathBuf>> {
    let programs = project.root.join("tests/programs");
    let task = World { wit: &project.root.join("wit"), name: "task" };
    let in_c = C::install(project)?;
    let in_python = Python::install(project)?;
    let in_javascript = JavaScript::install(project)?;
    let program = project.target.join("guests/c_program.wasm");
    in_c.build_program(&programs.join("c/program.c"), &program)?;
    let mut built = vec![program];
    for program in PROGRAMS {
        let [c, python, javascript] = ["c", "python", "javascript"]
            .map(|language| project.target.join(format!("guests/{language}_{program}.wasm")));
        in_c.build(&task, &[programs.join(format!("c/{program}.c"))], &c)?;
        in_python.build(&task, &programs.join("python"), program, &python)?;
        // JavaScript calls WASI itself, so each program has a world with the interfaces that it
        // calls.
        let world = World { wit: &programs.join("javascript/wit"), name: program };
        let module = programs.join(format!("javascript/{program}.js"));
        in_javascript.build(&world, &module, &javascript)?;
        built.extend([c, python, javascript]);
    }
    for guest in PYTHON_PROJECTS {
        let component = project.target.join(format!("guests/{}.wasm", guest.replace('-', "_")));
        in_python.build_project(project, &programs.join(guest), &component)?;
        built.push(component);
    }
    Ok(built)
}

/// Only installs the tools.
pub(crate) fn install(project: &Project) -> anyhow::Result<()> {
    C::install(project)?;
    Python::install(project)?;
    JavaScript::install(project)?;
    Ok(())
}

/// The world that a component implements.
pub(crate) struct World<'p> {
    /// A file or a directory.
    wit: &'p Path,
    name: &'p str,
}

/// The tools for C: Debian's clang and C library, `wit-bindgen`, and the component linker that
/// comes with Rust.
#[derive(Debug)]
pub(crate) struct C {
    wit_bindgen: PathBuf,
    linker: PathBuf,
    rust_lld: PathBuf,
}

impl C {
    const COMPILER: &str = "clang-14";

    pub(crate) fn install(project: &Project) -> anyhow::Result<Self> {
        let packages = ["clang-14", "lld-14", "wasi-libc", "libclang-rt-14-dev-wasm32", "make"];
        let has = |library: &str| {
            let mut find = Command::new(Self::COMPILER);
            let path = capture(find.args(["--target=wasm32-wasi", library]));
            path.is_ok_and(|path| Path::new(path.trim()).is_file())
        };
        let files = ["-print-file-name=libc.a", "-print-libgcc-file-name"];
        let programs = ["/usr/bin/wasm-ld-14", "/usr/bin/make"];
        let works =
            || files.into_iter().all(has) && programs.iter().all(|path| Path::new(path).exists());
        let what = "clang 14 with the C library for WebAssembly (Debian's packages clang-14, \
                    lld-14, wasi-libc and libclang-rt-14-dev-wasm32), and make";
        needed(works, &packages, what)?;
        let wit_bindgen = cargo_programs(project, "wit-bindgen-cli", "0.61.1", "c")?;
        // A test compares files with the output of `wit-bindgen`.
        link(project, "wit-bindgen", &wit_bindgen)?;
        let rust = rust_programs(project)?;
        let linker = rust.join("wasm-component-ld");
        ensure!(
            linker.is_file(),
            "{} is missing: it comes with Rust from https://rustup.rs",
            linker.display()
        );
        let rust_lld = rust.join("gcc-ld/wasm-ld");
        Ok(Self { wit_bindgen: wit_bindgen.join("wit-bindgen"), linker, rust_lld })
    }

    /// Builds a program for WASI preview 1 from one C file. This needs only the compiler.
    pub(crate) fn build_program(&self, source: &Path, program: &Path) -> anyhow::Result<()> {
        let compiler = capture(Command::new(Self::COMPILER).arg("--version"))?;
        unless_fresh(program, [source], &compiler, |_, made| {
            let mut compile = Command::new(Self::COMPILER);
            run(compile
                .args(["--target=wasm32-wasi", "-O2", "-Wall"])
                .arg(source)
                .arg("-o")
                .arg(made))
        })
    }

    /// Builds a component from C files. They include `NAME.h`, the header of the world NAME.
    pub(crate) fn build(
        &self,
        world: &World,
        sources: &[PathBuf],
        component: &Path,
    ) -> anyhow::Result<()> {
        let compiler = capture(Command::new(Self::COMPILER).arg("--version"))?;
        let linker = capture(Command::new(&self.linker).arg("--version"))?;
        let tools = format!("{compiler} {linker} {self:?}");
        let inputs = sources.iter().map(PathBuf::as_path).chain([world.wit]);
        unless_fresh(component, inputs, &tools, |scratch, made| {
            run(Command::new(&self.wit_bindgen)
                .arg("c")
                .arg(world.wit)
                .args(["--world", world.name, "--out-dir"])
                .arg(scratch))?;
            let bindings = |end: &str| scratch.join(format!("{}{end}", world.name));
            run(Command::new(Self::COMPILER)
                .args(["--target=wasm32-wasi", "-mexec-model=reactor", "-O2", "-Wall", "-I"])
                .arg(scratch)
                .arg(format!("-fuse-ld={}", self.linker.display()))
                .arg(format!("-Wl,--wasm-ld-path,{}", self.rust_lld.display()))
                .args(sources)
                .args([bindings(".c"), bindings("_component_type.o")])
                .arg("-o")
                .arg(made))
        })
    }
}

/// The tool for Python: componentize-py, which contains CPython. Tests find its environment as
/// `componentize-py` in the build directory, and the packages of new projects as `python-wheels`.
pub(crate) struct Python(PathBuf);

impl Python {
    pub(crate) fn install(project: &Project) -> anyhow::Result<Self> {
        let requirements = "tests/programs/python/requirements.txt";
        let environment = python_packages(project, "componentize-py", requirements)?;
        link(project, "componentize-py", &environment)?;
        python_wheels(project, "python-wheels", requirements)?;
        Ok(Self(environment))
    }

    /// Builds a component from a module whose class `WitWorld` has the functions of the world. The
    /// module can import other modules of the same directory.
    pub(crate) fn build(
        &self,
        world: &World,
        directory: &Path,
        module: &str,
        component: &Path,
    ) -> anyhow::Result<()> {
        let tools = self.0.to_string_lossy();
        unless_fresh(component, [directory, world.wit], &tools, |_, made| {
            run(Command::new(self.0.join("bin/componentize-py"))
                .args(["--quiet", "--wit-path"])
                .arg(world.wit)
                .args(["--world", world.name, "componentize", module, "--python-path"])
                .arg(directory)
                .arg("--output")
                .arg(made))
        })
    }

    /// Builds the component of a project that uses the package `task_host_guest`.
    fn build_project(
        &self,
        project: &Project,
        directory: &Path,
        component: &Path,
    ) -> anyhow::Result<()> {
        let package = project.root.join("guest-python/src");
        let tools = self.0.to_string_lossy();
        unless_fresh(component, [directory, &package], &tools, |_, made| {
            run(Command::new(self.0.join("bin/python"))
                .current_dir(directory)
                .env("PYTHONPATH", &package)
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .args(["-m", "task_host_guest", "--output"])
                .arg(made))
        })
    }
}

/// The tool for JavaScript: componentize-qjs, which contains QuickJS. A component has 2 MB and
/// compiles in 2 s. With componentize-js, which contains SpiderMonkey, a component has 13 MB and
/// compiles in 20 s, and the tool has 156 packages.
pub(crate) struct JavaScript(PathBuf);

impl JavaScript {
    pub(crate) fn install(project: &Project) -> anyhow::Result<Self> {
        let programs = npm_packages(project, "componentize-qjs", "tests/programs/javascript")?;
        // A test uses the tool in a new project.
        let packages = programs.parent().context("programs are in a directory of packages")?;
        link(project, "componentize-qjs", packages)?;
        Ok(Self(programs))
    }

    /// Builds a component from a module that exports the functions of the world.
    pub(crate) fn build(
        &self,
        world: &World,
        module: &Path,
        component: &Path,
    ) -> anyhow::Result<()> {
        let tools = self.0.to_string_lossy();
        unless_fresh(component, [module, world.wit], &tools, |_, made| {
            run(Command::new(self.0.join("componentize-qjs"))
                // The other runtime needs a host with the asynchronous interface of WASI 0.3.
                .args(["--sync", "--wit"])
                .arg(world.wit)
                .args(["--world", world.name, "--js"])
                .arg(module)
                .arg("--output")
                .arg(made))
        })
    }
}

/// Builds a component, unless it was built from the same inputs with the same tools. `make` gets a
/// directory for its own files, and the path at which to write the component.
fn unless_fresh<'p>(
    component: &Path,
    inputs: impl IntoIterator<Item = &'p Path>,
    tools: &str,
    make: impl FnOnce(&Path, &Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut key = DefaultHasher::new();
    (tools, include_str!("languages.rs")).hash(&mut key);
    for input in inputs {
        hash_files(input, &mut key).with_context(|| format!("cannot read {}", input.display()))?;
    }
    let key = format!("{:016x}", key.finish());
    let stamp = component.with_extension("key");
    if component.is_file() && fs::read_to_string(&stamp).is_ok_and(|last| last == key) {
        return Ok(());
    }
    // Another xtask may build the same component, so the name of the directory contains the process
    // id.
    let scratch = component.with_extension(format!("{}.tmp", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let made = scratch.join("component.wasm");
    let built = make(&scratch, &made).and_then(|()| {
        fs::rename(&made, component)
            .with_context(|| format!("cannot create {}", component.display()))?;
        Ok(fs::write(&stamp, key)?)
    });
    let _ = fs::remove_dir_all(&scratch);
    built
}

/// Hashes the contents of a file, or of all files in a directory.
fn hash_files(path: &Path, key: &mut DefaultHasher) -> io::Result<()> {
    if !path.is_dir() {
        fs::read(path)?.hash(key);
        return Ok(());
    }
    let entries: io::Result<Vec<_>> = fs::read_dir(path)?.collect();
    let mut paths: Vec<_> = entries?.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    // Python writes `__pycache__` beside the files that it reads.
    for path in paths.into_iter().filter(|path| !path.ends_with("__pycache__")) {
        path.file_name().hash(key);
        hash_files(&path, key)?;
    }
    Ok(())
}
