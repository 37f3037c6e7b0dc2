//! A program with a `main` and without code for Task Host. It reads its task from standard input,
//! and ends with an exit code. The text after `"do":"` in its task is the action.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::{env, process};

fn main() -> Result<(), Box<dyn Error>> {
    let mut message = String::new();
    if env::args().next().as_deref() == Some("deaf") {
        fs::write("/outputs/deaf.txt", "no word was read")?;
        return Ok(());
    }
    io::stdin().read_to_string(&mut message)?;
    let action = message.split("\"do\":\"").nth(1).and_then(|rest| rest.split('"').next());
    match action.unwrap_or("describe") {
        "describe" => describe(&message)?,
        "loop" => loop {
            std::hint::spin_loop();
        },
        "print" => loop {
            println!("{}", "x".repeat(1000));
        },
        "fill" => {
            let mut file = File::create("/outputs/full.dat")?;
            while file.write_all(&[0; 1 << 16]).is_ok() {}
        }
        "panic" => panic!("no such tile"),
        "fail" => return Err("the file is empty".into()),
        "silent" => process::exit(1),
        "unwrap" => drop(File::open("/inputs/missing.dat")?),
        code => {
            fs::write("/outputs/half.txt", "half")?;
            eprintln!("first\nthe reason is {code}\n");
            println!("not the reason");
            process::exit(code.parse()?);
        }
    }
    Ok(())
}

/// Writes what the program can see: its task, arguments, environment and inputs.
fn describe(message: &str) -> io::Result<()> {
    fs::create_dir_all("/outputs/seen")?;
    fs::write("/outputs/seen/message.json", message)?;
    let mut seen = File::create("/outputs/seen/seen.txt")?;
    writeln!(seen, "arguments: {:?}", env::args().collect::<Vec<_>>())?;
    writeln!(seen, "environment: {:?}", env::vars().collect::<Vec<_>>())?;
    copy(Path::new("/inputs"), Path::new("/outputs/seen"))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&to)?;
            copy(&entry.path(), &to)?;
        } else {
            fs::write(to, fs::read(entry.path())?)?;
        }
    }
    Ok(())
}
