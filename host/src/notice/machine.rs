//! Detects the cloud from the machine's firmware.

use std::fs;
use std::path::Path;

use super::Cloud;

/// The asset tag of the chassis of Azure's machines. Other Hyper-V machines have the same vendor
/// and product.
const AZURE: &str = "7783-7084-3265-9085-8269-3286-77";

/// The description of a machine, from its firmware.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    vendor: String,
    product: String,
    chassis: String,
    board: String,
}

impl Machine {
    /// This machine. The description is also visible in containers.
    pub fn this() -> Self {
        Self::read(Path::new("/sys/class/dmi/id"))
    }

    fn read(dir: &Path) -> Self {
        let read = |name: &str| {
            let text = fs::read_to_string(dir.join(name)).unwrap_or_default();
            text.trim().to_owned()
        };
        Self {
            vendor: read("sys_vendor"),
            product: read("product_name"),
            chassis: read("chassis_asset_tag"),
            board: read("board_asset_tag"),
        }
    }

    /// The cloud, if its notices are supported.
    pub fn cloud(&self) -> Option<Cloud> {
        // Older EC2 machines run on Xen, and report Xen's product name.
        if self.vendor == "Amazon EC2" || is_instance(&self.board) || is_instance(&self.chassis) {
            Some(Cloud::Aws)
        } else if self.product == "Google Compute Engine" {
            Some(Cloud::Google)
        } else if self.chassis == AZURE {
            Some(Cloud::Azure)
        } else {
            None
        }
    }

    #[cfg(test)]
    pub(super) fn of_cloud(cloud: Option<Cloud>) -> Self {
        let text = |of: Cloud, text: &str| if cloud == Some(of) { text } else { "" }.to_owned();
        Self {
            vendor: text(Cloud::Aws, "Amazon EC2"),
            product: text(Cloud::Google, "Google Compute Engine"),
            chassis: text(Cloud::Azure, AZURE),
            board: String::new(),
        }
    }
}

/// True for the id of an EC2 instance, such as `i-0123456789abcdef0`.
fn is_instance(tag: &str) -> bool {
    let id = tag.strip_prefix("i-").unwrap_or_default();
    matches!(id.len(), 8 | 17) && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cloud_is_told_from_machines_like_its_own() {
        let check = |files: &[(&str, &str)], want| {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in files {
                fs::write(dir.path().join(name), format!("{text}\n")).unwrap();
            }
            assert_eq!(Machine::read(dir.path()).cloud(), want, "{files:?}");
        };
        let (vendor, product, chassis) = ("sys_vendor", "product_name", "chassis_asset_tag");
        check(&[], None);
        check(&[(vendor, "Amazon EC2"), (product, "c7i.4xlarge")], Some(Cloud::Aws));
        let id = "i-0123456789abcdef0";
        check(&[(vendor, "Xen"), (product, "HVM domU"), ("board_asset_tag", id)], Some(Cloud::Aws));
        check(&[(vendor, "Xen"), (product, "HVM domU")], None);
        check(&[(vendor, "Google"), (product, "Google Compute Engine")], Some(Cloud::Google));
        let hyper_v = [(vendor, "Microsoft Corporation"), (product, "Virtual Machine")];
        check(&hyper_v, None);
        check(&[hyper_v[0], hyper_v[1], (chassis, AZURE)], Some(Cloud::Azure));
        check(&[(vendor, "QEMU"), (product, "Standard PC"), (chassis, "i-am-not")], None);
    }
}
