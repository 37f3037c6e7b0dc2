//! Attacks on time: guests that never end.

use misbehave::Action;
use task_host_tests::components;

use super::trial::Case;

attacks! {
    /// Loops forever, without a call of the host.
    Loop => time_in_a_loop,
    /// Sleeps forever in a call of the host.
    Sleep => time_in_a_sleep,
    /// Loops forever in a start function, while its instance is created.
    Start => time_in_a_start_function,
    /// Copies memory forever: few instructions, each of which takes long.
    Copies => time_in_large_copies,
}

pub(super) fn case(attack: Attack) -> Case {
    let says = "the guest ran into its time limit of 300ms";
    let case = match attack {
        Attack::Loop => Case::given_up(Action::Loop, &[says]),
        Attack::Sleep => Case::given_up(Action::Sleep { secs: 3600.0 }, &[says]),
        Attack::Start => {
            let spin = "(func $spin (loop $more (br $more))) (start $spin)";
            Case::given_up(components::with_fields(2, spin), &[says])
        }
        Attack::Copies => {
            let copy = "(memory.copy (i32.const 0) (i32.const 1) (i32.const 67108863))";
            let body = format!("(loop $more {copy} (br $more)) (i32.const 1040)");
            // 64 MiB.
            let component = components::with_body(&body, 1024, "");
            Case::given_up(component, &[says])
        }
    };
    case.with(&["--timeout", "300ms"])
}
