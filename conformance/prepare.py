#!/usr/bin/env python3
"""Builds what a conformance run needs, from the Go module proxy and Debian alone: upstream's suite as one program, the
ginkgo runner, and an archive of stand-ins for the suite's container images (its registry need not be reachable).

The stand-ins have the programs, files and users that the tests look for; what upstream builds from Go is built from the
same sources here, what it takes from Alpine comes from Debian. Known differences: busybox's shell of Debian drops
environment variables whose names are not identifiers (five tests print them), and an image volume with the pull policy
Always wants the real registry.

usage: prepare.py FOLDER VERSION      (Kubernetes' tag, such as v1.36.3; writes FOLDER/{suite.test,ginkgo,images.tar})
"""
import hashlib, io, json, os, pathlib, re, shutil, subprocess, sys, tarfile

FOLDER, VERSION = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
HERE = pathlib.Path(__file__).resolve().parent
REGISTRY = "registry.k8s.io/e2e-test-images/"
DEBIAN = "bind9-dnsutils,curl,netcat-openbsd,iproute2,iperf,busybox-static,procps"
LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt", "var/lib/apt", "var/log/", "dev/")


def run(*command, cwd=None, **env):
    print("+", *command, flush=True)
    subprocess.run(command, cwd=cwd, check=True, env={**os.environ, "GOFLAGS": "-mod=mod", **env})


def module(folder, version):
    """A module that requires Kubernetes and, at its own versions, all that it requires; its staging modules carry v0.x.y."""
    found = json.loads(subprocess.run(["go", "mod", "download", "-json", f"k8s.io/kubernetes@{version}"], check=True, capture_output=True, cwd=folder).stdout)
    text, staging = open(found["GoMod"]).read(), version.replace("v1.", "v0.", 1)
    ours = sorted(set(re.findall(r"^\s*(k8s\.io/[\w-]+) (?:v0\.0\.0|=> \./staging)", text, re.M)))
    wanted = re.findall(r"^\t(\S+) (v\S+)(?: // indirect)?$", text, re.M)
    go = re.search(r"^go (\S+)", text, re.M).group(1)
    lines = [f"module suite\n\ngo {go}\n\nrequire k8s.io/kubernetes {version}\n"]
    lines += [f"require {name} {staging if name in ours else v}\n" for name, v in wanted]
    lines += [f"replace {name} => {name} {staging}\n" for name in ours]
    (folder / "go.mod").write_text("".join(lines))
    shutil.copy(HERE / "suite_test.go", folder)
    run("go", "mod", "tidy", "-e", cwd=folder)
    return pathlib.Path(found["Dir"])


def programs(folder):
    run("go", "test", "-c", "-vet=off", "-o", "suite.test", ".", cwd=folder)
    run("go", "build", "-o", "ginkgo", "github.com/onsi/ginkgo/v2/ginkgo", cwd=folder)
    for name in ("agnhost", "nonewprivs", "regression-issue-74839"):
        run("go", "build", "-o", f"bin/{name}", f"k8s.io/kubernetes/test/images/{name}", cwd=folder, CGO_ENABLED="0")


class Archive:
    """A docker archive: layers by name, images that stack them."""

    def __init__(self, folder):
        self.folder, self.layers, self.images = folder, {}, []
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    def layer(self, name, fill):
        path = self.folder / f"{name}.tar"
        with tarfile.open(path, "w") as tar:
            fill(tar)
        self.layers[name] = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()

    def image(self, names, layers, entrypoint=None, command=None, user=""):
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [self.layers[l] for l in layers]},
                  "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Entrypoint": entrypoint, "Cmd": command, "User": user}}
        data = json.dumps(config).encode()
        name = hashlib.sha256(data).hexdigest() + ".json"
        (self.folder / name).write_bytes(data)
        self.images.append({"Config": name, "RepoTags": names, "Layers": [f"{l}.tar" for l in layers]})

    def write(self, path):
        (self.folder / "manifest.json").write_text(json.dumps(self.images))
        with tarfile.open(path, "w") as tar:
            for file in sorted(self.folder.iterdir(), key=lambda file: file.name != "manifest.json"):
                tar.add(file, file.name)


def put(tar, path, data=None, source=None, link=None, mode=0o755):
    """One entry: a file of `data` or of the file `source`, a link, or a folder."""
    entry = tarfile.TarInfo(path)
    entry.mode = mode
    if source is not None:
        data = pathlib.Path(source).read_bytes()
    if link is not None:
        entry.type, entry.linkname = tarfile.SYMTYPE, link
    elif data is None:
        entry.type = tarfile.DIRTYPE
    else:
        entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data) if data is not None else None)


def images(folder, kubernetes):
    root, sources, archive = folder / "rootfs", kubernetes / "test/images", Archive(folder / "layers")
    if not (root / "bin/busybox").exists():
        run("debootstrap", "--variant=minbase", f"--include={DEBIAN}", "stable", str(root))
    busybox = root / "bin/busybox"
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()

    def keep(entry):
        entry.uname = entry.gname = ""
        return None if entry.name.startswith(LEFT_OUT) else entry

    def debian(tar):
        for name in sorted(os.listdir(root)):
            tar.add(root / name, name, filter=keep)

    def small(tar):
        for name in ("bin", "dev", "etc", "home", "proc", "root", "sbin", "sys", "usr", "usr/bin", "usr/local", "usr/local/bin", "usr/sbin", "var", "var/spool"):
            put(tar, name)
        put(tar, "tmp", mode=0o1777)
        put(tar, "bin/busybox", source=busybox)
        for applet in applets:
            if applet != "busybox":
                put(tar, f"bin/{applet}", link="/bin/busybox")
        put(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\nbin:x:2:2::/:/bin/false\nnobody:x:65534:65534::/home:/bin/false\n", mode=0o644)
        put(tar, "etc/group", b"root:x:0:\ndaemon:x:1:\nbin:x:2:\nnobody:x:65534:\n", mode=0o644)

    def agnhost(tar):
        put(tar, "agnhost", source=folder / "bin/agnhost")
        put(tar, "agnhost-2", link="agnhost")
        put(tar, "uploads")
        put(tar, "usr/bin/wget", link="/bin/busybox")
        for name in ("localhost.crt", "localhost.key"):
            put(tar, name, source=sources / "agnhost/porter" / name, mode=0o644)
        user = b"user-defined-in-image:x:1000:"
        put(tar, "etc/passwd", (root / "etc/passwd").read_bytes() + user + b"1000::/home:/bin/sh\n", mode=0o644)
        put(tar, "etc/group", (root / "etc/group").read_bytes() + user + b"\ngroup-defined-in-image:x:50000:user-defined-in-image\n", mode=0o644)

    def page(tar):
        put(tar, "usr/share/nginx")
        put(tar, "usr/share/nginx/html")
        put(tar, "usr/share/nginx/html/index.html", b"<html><title>Welcome to nginx!</title></html>\n", mode=0o644)

    archive.layer("debian", debian)
    archive.layer("small", small)
    archive.layer("agnhost", agnhost)
    archive.layer("page", page)
    archive.layer("nnp", lambda tar: put(tar, "usr/local/bin/nnp", source=folder / "bin/nonewprivs", mode=0o6755))
    archive.layer("regression", lambda tar: put(tar, "regression-issue-74839", source=folder / "bin/regression-issue-74839"))
    large, serve = ["debian", "agnhost"], ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/usr/share/nginx/html"]
    archive.image([REGISTRY + "agnhost:2.63.0", REGISTRY + "agnhost:2.55"], large, ["/agnhost"], ["pause"])
    archive.image([REGISTRY + "busybox:1.37.0-1"], ["small"], None, ["sh"])
    archive.image(["registry.k8s.io/pause:3.10.2"], large, ["/agnhost", "pause"])
    archive.image([REGISTRY + "nginx:1.15-4"], large + ["page"], None, serve)
    archive.image([REGISTRY + "nginx:1.27-0"], large + ["page"], None, serve + ["-v"])
    archive.image([REGISTRY + "nonroot:1.5"], large, ["/agnhost"], ["pause"], "1234")
    archive.image([REGISTRY + "nonewprivs:1.4"], ["small", "nnp"], None, ["/usr/local/bin/nnp"])
    archive.image([REGISTRY + "regression-issue-74839:1.4"], ["small", "regression"], ["/regression-issue-74839"])
    archive.image([REGISTRY + "glibc-dns-testing:2.0.0"], large, None, ["sh"])
    for name in ("nautilus", "kitten"):
        files = sorted((sources / name / "html").iterdir())
        archive.layer(name, lambda tar: [put(tar, file.name, source=file, mode=0o644) for file in files])
        archive.image([f"{REGISTRY}{name}:1.8"], large + [name], ["/agnhost"], ["test-webserver"])
    archive.write(folder / "images.tar")


FOLDER.mkdir(parents=True, exist_ok=True)
kubernetes = module(FOLDER, VERSION)
programs(FOLDER)
images(FOLDER, kubernetes)
