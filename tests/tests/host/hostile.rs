//! Malicious guests, components, messages and directories.
//!
//! The security page lists what Task Host promises, with the tests behind each promise. This module
//! contains the attacks: each kind has a file with an enum of its attacks. [`attacks!`] generates a
//! test for each attack. `case` defines the action and the expected result. [`trial::check`] runs
//! the attack, and then checks the outcome, the message, the host's memory and descriptors, the
//! cache, and the next task.
//!
//! An attack without a case does not compile, and neither does an action of the guest `misbehave`
//! without an attack. A test fails for an attack that the security page does not link to.

/// Defines the attacks of one kind: an enum, the list of its values, and a test for each.
macro_rules! attacks {
    ($($(#[$doc:meta])* $attack:ident => $test:ident,)*) => {
        #[derive(Clone, Copy, Debug)]
        pub(super) enum Attack { $($(#[$doc])* $attack,)* }

        impl Attack {
            pub(super) const ALL: &[Self] = &[$(Self::$attack),*];
        }

        $(#[test]
        fn $test() {
            super::trial::check(case(Attack::$attack));
        })*
    };
}

mod calls;
mod ends;
mod engine;
mod files;
mod handles;
mod memory;
mod plans;
mod reach;
mod texts;
mod time;

mod actions;
mod trial;

mod cache;
mod compile;
mod kernel;
mod names;
mod places;
mod queue;
mod trees;
