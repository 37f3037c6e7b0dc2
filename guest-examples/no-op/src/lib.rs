//! NO_OP: copies each input `X_input/…/f` to `0_output/f`, like the task that SimpleTasks
//! documents. It is a first guest to try, and is used to measure the cost of running a guest.
// The component's file has the name of its tasks, NO_OP.wasm. The test binary has another name.
#![cfg_attr(not(test), expect(non_snake_case, reason = "the file's name"))]

use std::io;

use task_host_sdk::{Context, Guest, Ignored, Outcome, Result, Task};

#[derive(Default)]
struct NoOp;

impl Guest for NoOp {
    type Payload = Ignored;

    fn execute(&mut self, task: &Task) -> Result<Outcome> {
        for input in task.inputs() {
            let mut output = task.output(&format!("0_output/{}", input.file_name()))?;
            io::copy(&mut input.open()?, &mut output).with_context(|| input.to_string())?;
            output.finish()?;
        }
        Ok(task.done())
    }
}

task_host_sdk::export!(NoOp);

#[cfg(test)]
mod tests {
    use super::NoOp;
    use task_host_sdk::testing::Sandbox;

    #[test]
    fn the_documented_task_leaves_the_documented_outputs() {
        let mut sandbox = Sandbox::new().unwrap();
        sandbox.input("0_input/4.dat", b"four").unwrap().input("0_input/5.dat", b"").unwrap();
        let outcome = sandbox.payload(r#""NoOp Task for 4:5""#).run::<NoOp>().unwrap();
        assert_eq!(outcome.outputs(), ["0_output/4.dat", "0_output/5.dat"]);
        assert_eq!(sandbox.output("0_output/4.dat").unwrap(), b"four");
        assert_eq!(sandbox.output("0_output/5.dat").unwrap(), b"");
    }

    #[test]
    fn a_task_without_inputs_leaves_nothing() {
        let outcome = Sandbox::new().unwrap().run::<NoOp>().unwrap();
        assert!(outcome.is_success() && outcome.outputs().is_empty());
    }
}
