//! A lease that is kept alive for as long as its task is held.
