//! From the text of a message to a Task; pure.
