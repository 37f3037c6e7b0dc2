//! Attacks on memory: a guest's memories, tables, stack, and the modules of its component.

use misbehave::Action;
use task_host_tests::components;

use super::trial::Case;

attacks! {
    /// Allocates memory until an allocation fails, and then aborts as Rust programs do.
    Allocate => memory_until_the_guest_aborts,
    /// Grows its memory until the host refuses, and stops there.
    AllocateGently => memory_by_a_guest_that_takes_no_for_an_answer,
    /// Needs more memory than the limit from the start.
    AtStart => memory_from_the_start,
    /// Has several memories, each below the limit, but not their sum.
    Memories => memory_of_all_memories_together,
    /// Has more memories than the limit.
    ManyMemories => too_many_memories,
    /// Has more core modules than the limit.
    ManyModules => too_many_core_modules,
    /// Has two tables in one module.
    Tables => two_tables_in_a_module,
    /// Has two tables that exceed the limit together.
    Elements => table_elements_of_all_tables_together,
    /// Has a table that exceeds the limit.
    LargeTable => table_elements_of_one_table,
    /// Grows a table beyond the limit.
    GrowTable => table_elements_by_a_guest_that_takes_no_for_an_answer,
    /// Recurses without end.
    Stack => a_stack_without_end,
}

pub(super) fn case(attack: Attack) -> Case {
    let memory = "the guest ran into its memory limit of 4.0 MiB; `--memory` raises it";
    let parts = "the component is made of more than 32 core modules, 4 memories or 32 tables";
    match attack {
        Attack::Allocate => {
            let says = ["the guest ran into its memory limit of 64.0 MiB"];
            Case::rejected(Action::Alloc { mib: None, gently: false }, &says)
                .with(&["--memory", "64MiB"])
                .reports("phase", "execute")
        }
        Attack::AllocateGently => Case::done(Action::Alloc { mib: None, gently: true })
            .with(&["--memory", "64MiB"])
            .also(|_, report| {
                let mib = report["mib"].as_u64().unwrap();
                assert!((32..64).contains(&mib), "{report}");
            }),
        Attack::AtStart => {
            Case::rejected(components::with_fields(100, ""), &[memory]).with(&["--memory", "4MiB"])
        }
        Attack::Memories => Case::rejected(components::composed(&memories(3, 25)), &[memory])
            .with(&["--memory", "4MiB"]),
        Attack::ManyMemories => Case::rejected(components::composed(&memories(5, 1)), &[parts]),
        Attack::ManyModules => {
            let many = "(core instance (instantiate $e))".repeat(40);
            Case::rejected(components::composed(&format!("(core module $e){many}")), &[parts])
        }
        Attack::Tables => {
            let two = components::with_fields(2, "(table 1 funcref) (table 1 funcref)");
            Case::rejected(two, &["can't be run", "limit of 1"])
        }
        Attack::Elements => {
            let table = "(core module $t (table 600000 funcref))".to_owned()
                + &"(core instance (instantiate $t))".repeat(2);
            let says = "the limit of 1000000 elements of its tables";
            Case::rejected(components::composed(&table), &[says])
        }
        Attack::LargeTable => {
            let large = components::with_fields(2, "(table 2000000 funcref)");
            Case::rejected(large, &["can't be run", "exceeds the limit of 1000000"])
        }
        Attack::GrowTable => {
            let grow = "(table.grow $t (ref.null func) (i32.const 2000000))";
            let body = format!(
                "(if (i32.ne {grow} (i32.const -1)) (then (unreachable))) (i32.const 1040)"
            );
            Case::done(components::with_body(&body, 2, "(table $t 1 funcref)"))
        }
        Attack::Stack => Case::given_up(Action::Stack, &["stack overflow"]),
    }
}

/// `count` modules, each with a memory of `pages` pages.
fn memories(count: usize, pages: usize) -> String {
    let memory =
        |n| format!("(core module $m{n} (memory {pages})) (core instance (instantiate $m{n}))");
    (0..count).map(memory).collect()
}
