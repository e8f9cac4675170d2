//! Functions that are held for their extensions, in each class.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use skiff_sandbox::{Backend, ExecRequest};

use super::{Rig, layer, read_all, read_to_end, within};

fn early(root: &Path) {
    let folder = root.join("opt/extensions");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("early");
    fs::write(&file, "#!/bin/sh\necho early\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What is started in it meanwhile comes first.
pub(super) async fn a_function_begins_after_its_extensions(rig: &Rig, backend: &dyn Backend) {
    let folder = tempfile::tempdir().unwrap();
    let mut spec = rig.spec("echo begun; exit 4");
    spec.function = true;
    spec.layers.push(layer(folder.path(), 9, early));
    let (mut process, added) = (spec.process.clone(), spec.layers[2].digest.clone());
    process.args = vec!["/opt/extensions/early".to_owned()];
    let created = within("a sandbox", backend.create(spec)).await.unwrap();
    let (sandbox, output) = (created.sandbox, created.output.unwrap());
    assert_eq!(sandbox.extensions().await.unwrap(), ["early"]);
    let request = ExecRequest {
        process,
        terminal: None,
    };
    let mut extension = within("an extension", sandbox.exec(request)).await.unwrap();
    assert_eq!(read_to_end(&mut *extension.output).await, "early\n");
    let end = within("its end", extension.process.exited()).await;
    assert_eq!((end.code, end.signal), (Some(0), None));
    within("its begin", sandbox.begin()).await.unwrap();
    let first = within("its own end", sandbox.first_ended()).await;
    assert_eq!((first.code, first.signal), (Some(4), None));
    // Nothing in it is left to be waited for.
    within("a signal", sandbox.signal(9)).await.unwrap();
    let exit = within("its end", sandbox.exited()).await;
    assert_eq!(read_all(output.stdout).await, "begun\n");
    assert_eq!(exit.code, Some(4));
    within("its destruction", sandbox.destroy()).await.unwrap();
    within("its layer", backend.release(&added)).await.unwrap();
}
