//! Content-addressed files on local disk: one download however many tasks ask.
