//! The images that an example guest writes.

use task_host_tests::Place;

/// The guest has its own decoder for common PNG files, with instructions that only WebAssembly has.
/// It leaves a file with a damaged comment to the `image` crate, which ignores comments.
#[test]
fn a_guest_sees_the_picture_that_the_image_crate_sees() {
    let place = Place::with(&["image_downsample"]);
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest-examples/data");
    let cell = std::fs::read(format!("{data}/cell.png")).unwrap();
    let mut commented = cell.clone();
    let end_chunk = cell.len() - 12;
    commented.splice(end_chunk..end_chunk, *b"\0\0\0\x04tEXta\0bc????");
    place.put("cells/0_input/plain.png", &cell);
    place.put("cells/0_input/commented.png", &commented);
    place.submit_text(
        r#"{"basic_info": {"id": 1, "name": "image_downsample", "base_directory": "cells", "inputs": ["0_input/plain.png", "0_input/commented.png"]}}"#,
    );
    place.run(&["-x"]).good();
    let plain = place.object("cells/1_downsampled/plain.png").unwrap();
    let commented = place.object("cells/1_downsampled/commented.png").unwrap();
    assert!(plain.len() > 10_000, "{} bytes", plain.len());
    assert!(plain == commented, "the pictures differ");
}
