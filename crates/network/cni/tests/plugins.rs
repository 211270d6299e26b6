//! Plugins by the specification: scripts that say what they were asked, so that it needs no package.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use cni::{Folders, Plugins, PodNetwork};

const RECORDER: &str = r#"#!/bin/sh
dir=$(dirname "$0")
input=$(cat)
echo "$CNI_COMMAND $(basename "$0") $CNI_CONTAINERID $CNI_IFNAME prev=$(echo "$input" | grep -c prevResult)" >> "$dir/log"
if [ "$CNI_COMMAND" = ADD ] && [ -e "$dir/fail-$(basename "$0")" ]; then
  echo '{"cniVersion":"1.0.0","code":11,"msg":"no more room","details":"in this test"}'
  exit 1
fi
if [ "$CNI_COMMAND" = ADD ]; then
  [ -e "$CNI_NETNS" ] || exit 3
  echo '{"cniVersion":"1.0.0","ips":[{"address":"10.99.0.7/24"},{"address":"fd00:99::7/64"}]}'
fi
"#;

#[test]
fn plugins_are_chained_and_undone_in_reverse_with_what_they_were_added_with() {
    let dir = tempfile::tempdir().unwrap();
    let (conf, bin) = (dir.path().join("net.d"), dir.path().join("bin"));
    fs::create_dir_all(&conf).unwrap();
    fs::create_dir_all(&bin).unwrap();
    for plugin in ["first", "second"] {
        fs::write(bin.join(plugin), RECORDER).unwrap();
        fs::set_permissions(bin.join(plugin), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let log = || fs::read_to_string(bin.join("log")).unwrap_or_default();
    let open =
        || Plugins::open(Folders { configuration: conf.clone(), programs: vec![bin.clone()], state: dir.path().join("state") }).unwrap();
    let network = open();
    assert!(network.readiness().unwrap_err().contains("no networks found"));
    fs::write(conf.join("10-test.conflist"), r#"{"name":"net","cniVersion":"1.0.0","plugins":[{"type":"first"},{"type":"second"}]}"#)
        .unwrap();
    network.readiness().unwrap();
    let netns = fs::File::open("/proc/self/ns/net").unwrap();
    let attached = network.attach("box-1", netns.as_fd()).unwrap();
    assert_eq!(attached.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.99.0.7", "fd00:99::7"]);
    assert_eq!(network.attach("box-1", netns.as_fd()).unwrap(), attached, "once only");
    assert_eq!(log(), "ADD first box-1 eth0 prev=0\nADD second box-1 eth0 prev=1\n");
    // Another network is configured, and the daemon starts again: the sandbox is detached by the plugins that it has.
    fs::write(conf.join("05-other.conflist"), r#"{"name":"other","cniVersion":"1.0.0","plugins":[{"type":"second"}]}"#).unwrap();
    fs::write(dir.path().join("state/box-9.new"), "{").unwrap();
    let network = open();
    assert!(!dir.path().join("state/box-9.new").exists(), "what a killed daemon was writing is gone");
    network.retain(&["box-1".into()]).unwrap();
    fs::remove_file(bin.join("log")).unwrap();
    network.retain(&[]).unwrap();
    assert_eq!(log(), "DEL second box-1 eth0 prev=1\nDEL first box-1 eth0 prev=1\n");
    network.detach("box-1").unwrap();
    // A plugin that refuses is quoted, and what was made before it is undone.
    fs::write(bin.join("fail-second"), "").unwrap();
    let error = network.attach("box-2", netns.as_fd()).unwrap_err().to_string();
    assert!(error.contains("CNI plugin second: ADD sandbox box-2: no more room in this test"), "{error}");
    assert!(log().ends_with("ADD second box-2 eth0 prev=0\nDEL second box-2 eth0 prev=0\n"), "{}", log());
    fs::write(conf.join("01-bad.conf"), r#"{"name":"net","type":"../../bin/sh"}"#).unwrap();
    assert!(network.attach("box-3", netns.as_fd()).unwrap_err().to_string().contains("not found"));
}
