//! What a guest left in its outputs directory, into the bucket.
