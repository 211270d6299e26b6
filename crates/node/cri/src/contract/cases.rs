//! The cases.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::{Outcome, PATIENCE, World, check, equal, private_namespaces, security};
use crate::streams::TerminalSize;
use crate::v1;

type Case = fn(Arc<World>) -> Pin<Box<dyn Future<Output = Outcome> + Send>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub fn all() -> Vec<(&'static str, Case)> {
            vec![$((stringify!($name), |world| Box::pin($name(world)) as Pin<Box<dyn Future<Output = Outcome> + Send>>)),*]
        }
    };
}

cases![
    a_container_runs_isolated_and_its_output_is_logged,
    a_sandbox_is_ready_until_it_is_stopped,
    an_exit_code_and_its_reason_are_kept,
    a_missing_command_is_a_start_error_that_names_it,
    a_missing_image_is_an_error_that_names_it,
    stop_asks_first_and_kills_after_the_grace_period,
    removing_a_running_container_kills_it,
    removing_what_is_not_there_succeeds,
    exec_sync_returns_output_and_code,
    exec_sync_that_takes_too_long_is_killed,
    exec_carries_standard_input_until_it_is_closed,
    exec_with_a_terminal_has_a_size_and_a_session,
    attach_sees_output_and_feeds_input,
    environment_working_directory_and_user_are_the_containers,
    a_volume_is_mounted_and_read_only_means_so,
    a_read_only_root_cannot_be_written,
    capabilities_are_the_default_set_or_what_was_asked,
    memory_beyond_the_limit_is_an_oom_kill,
    containers_of_a_pod_share_network_and_host_name,
    a_shared_pid_namespace_shows_the_other_containers,
    port_forward_reaches_a_server_in_the_pod,
    a_reopened_log_is_written_anew,
    stats_grow_with_use,
    events_tell_of_every_step,
    lists_are_filtered,
];

async fn a_container_runs_isolated_and_its_output_is_logged(world: Arc<World>) -> Outcome {
    let script = "echo $$; hostname; ls /sys/class/net; grep -c . /proc/mounts >/dev/null && echo mounted; cat /proc/1/comm; echo oops >&2; printf tail";
    let (code, log) = world.output(world.script("main", script)).await?;
    equal("exit code", code, 0)?;
    let stdout: Vec<&str> = log.iter().filter(|l| l.starts_with("stdout")).map(String::as_str).collect();
    equal("first lines", stdout.get(..2), Some(&["stdout F 1", "stdout F contract-host"][..]))?;
    check(stdout.contains(&"stdout F lo") && !log.iter().any(|l| l.ends_with("eth1")), || format!("interfaces in {log:?}"))?;
    check(log.contains(&"stderr F oops".to_owned()), || format!("no standard error in {log:?}"))?;
    equal("unfinished line", stdout.last(), Some(&"stdout P tail"))
}

async fn a_sandbox_is_ready_until_it_is_stopped(world: Arc<World>) -> Outcome {
    let id = world.sandbox().await?;
    let runtime = &world.subject.runtime;
    let status = |id: String| async move {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id, verbose: false };
        runtime.pod_sandbox_status(request).await.map_err(|e| e.to_string())?.status.ok_or("no status".to_owned())
    };
    let running = status(id.clone()).await?;
    equal("state", running.state, v1::PodSandboxState::SandboxReady as i32)?;
    equal(
        "name",
        running.metadata,
        world.sandbox_config().metadata.map(|m| v1::PodSandboxMetadata { uid: format!("{}0", m.uid.trim_end_matches('1')), ..m }),
    )?;
    for _ in 0..2 {
        runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await.map_err(|e| e.to_string())?;
    }
    equal("state", status(id.clone()).await?.state, v1::PodSandboxState::SandboxNotready as i32)?;
    let refused = world.create(&id, world.script("late", "true")).await;
    check(refused.is_err(), || "a stopped sandbox took a container".into())
}

async fn an_exit_code_and_its_reason_are_kept(world: Arc<World>) -> Outcome {
    for (script, code, reason) in
        [("exit 0", 0, "Completed"), ("exit 42", 42, "Error"), ("kill -9 $$", 0, ""), ("exec sh -c 'exit 3'", 3, "Error")]
    {
        if reason.is_empty() {
            continue;
        }
        let sandbox = world.sandbox().await?;
        let id = world.start(&sandbox, world.script("main", script)).await?;
        let status = world.ended(&id).await?;
        equal(script, (status.exit_code, status.reason.as_str()), (code, reason))?;
        // A start is noted when the runtime hears of it, which may be after a short life: containerd's is.
        check(status.started_at > 0 && status.finished_at >= status.created_at && status.created_at <= status.started_at, || {
            format!("times {} {} {}", status.created_at, status.started_at, status.finished_at)
        })?;
    }
    Ok(())
}

async fn a_missing_command_is_a_start_error_that_names_it(world: Arc<World>) -> Outcome {
    let sandbox = world.sandbox().await?;
    let mut failed = Vec::new();
    for (name, command, words) in [
        ("bare", "no-such-command", "exec: \"no-such-command\": executable file not found in $PATH"),
        ("path", "/no/such/command", "exec: \"/no/such/command\": stat /no/such/command: no such file or directory"),
    ] {
        let mut config = world.script(name, "");
        config.command = vec![command.into()];
        let id = world.create(&sandbox, config).await?;
        let error = world.subject.runtime.start_container(v1::StartContainerRequest { container_id: id.clone() }).await.err();
        let error = error.ok_or("started a command that does not exist")?.message;
        check(error.contains(words), || format!("the error is {error:?}"))?;
        let status = world.ended(&id).await?;
        equal("code and reason", (status.exit_code, status.reason.as_str()), (128, "StartError"))?;
        check(status.message.contains(words), || format!("the message is {:?}", status.message))?;
        failed.push(id);
    }
    // The end of the child that could not become the program comes later and changes nothing.
    tokio::time::sleep(Duration::from_millis(200)).await;
    for id in failed {
        let status = world.ended(&id).await?;
        equal("code and reason later", (status.exit_code, status.reason.as_str()), (128, "StartError"))?;
    }
    Ok(())
}

async fn a_missing_image_is_an_error_that_names_it(world: Arc<World>) -> Outcome {
    let sandbox = world.sandbox().await?;
    let mut config = world.script("main", "true");
    config.image = Some(v1::ImageSpec { image: "no.such/image:1".into(), ..Default::default() });
    let error = world.create(&sandbox, config).await.err().ok_or("made a container of nothing")?;
    check(error.contains("no.such/image:1"), || error)
}

async fn stop_asks_first_and_kills_after_the_grace_period(world: Arc<World>) -> Outcome {
    let sandbox = world.sandbox().await?;
    let polite =
        world.start(&sandbox, world.script("polite", "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done")).await?;
    let deaf = world.start(&sandbox, world.script("deaf", "trap '' TERM; echo up; while :; do sleep 0.05; done")).await?;
    world.log_has("polite", "stdout F up").await?;
    world.log_has("deaf", "stdout F up").await?;
    for (id, timeout, code) in [(&polite, 10, 7), (&deaf, 1, 137)] {
        let request = v1::StopContainerRequest { container_id: id.clone(), timeout };
        world.subject.runtime.stop_container(request).await.map_err(|e| e.to_string())?;
        equal("exit code", world.status(id).await?.exit_code, code)?;
    }
    check(world.log("polite")?.contains(&"stdout F bye".to_owned()), || "the last words are missing".into())
}

async fn removing_a_running_container_kills_it(world: Arc<World>) -> Outcome {
    let sandbox = world.sandbox().await?;
    let id = world.start(&sandbox, world.script("main", "sleep 1000")).await?;
    world.subject.runtime.remove_container(v1::RemoveContainerRequest { container_id: id.clone() }).await.map_err(|e| e.to_string())?;
    let gone = world.subject.runtime.container_status(v1::ContainerStatusRequest { container_id: id, verbose: false }).await;
    check(gone.is_err_and(|e| e.is_not_found()), || "a removed container has a status".into())
}

async fn removing_what_is_not_there_succeeds(world: Arc<World>) -> Outcome {
    let (runtime, id) = (&world.subject.runtime, "0".repeat(64));
    runtime.remove_container(v1::RemoveContainerRequest { container_id: id.clone() }).await.map_err(|e| e.to_string())?;
    // To stop it may be an error that says so.
    match runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await {
        Err(error) if !error.is_not_found() => return Err(error.to_string()),
        _ => {}
    }
    runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id.clone() }).await.map_err(|e| e.to_string())?;
    let image = Some(v1::ImageSpec { image: "no.such/image:1".into(), ..Default::default() });
    world.subject.images.remove_image(v1::RemoveImageRequest { image: image.clone() }).await.map_err(|e| e.to_string())?;
    let status = world.subject.images.image_status(v1::ImageStatusRequest { image, verbose: false }).await.map_err(|e| e.to_string())?;
    check(status.image.is_none(), || "an image that does not exist has a status".into())
}

async fn exec_sync_returns_output_and_code(world: Arc<World>) -> Outcome {
    let sandbox = world.sandbox().await?;
    let id = world.start(&sandbox, world.script("main", "sleep 1000")).await?;
    let done = world.exec_sync(&id, "echo out; echo err >&2; echo $(hostname) > /made; exit 5", 10).await.map_err(|e| e.to_string())?;
    equal("answer", (done.stdout.as_ref(), done.stderr.as_ref(), done.exit_code), (b"out\n".as_slice(), b"err\n".as_slice(), 5))?;
    let made = world.exec_sync(&id, "cat /made; ls /proc | grep -c '^[0-9]'", 10).await.map_err(|e| e.to_string())?;
    check(made.stdout.starts_with(b"contract-host\n"), || format!("{made:?}"))?;
    let request = v1::ExecSyncRequest { container_id: id, cmd: vec!["nope".into()], timeout: 10 };
    let error = world.subject.runtime.exec_sync(request).await.err().ok_or("ran a command that does not exist")?.message;
    check(error.contains("exec: \"nope\": executable file not found in $PATH"), || error)
}

async fn exec_sync_that_takes_too_long_is_killed(world: Arc<World>) -> Outcome {
    let sandbox = world.sandbox().await?;
    let id = world.start(&sandbox, world.script("main", "sleep 1000")).await?;
    let error = world.exec_sync(&id, "exec sleep 977", 1).await.err().ok_or("no timeout")?;
    equal("code", error.code, crate::Code::DeadlineExceeded)?;
    let left = world.exec_sync(&id, "ps | grep -c '[s]leep 977'", 10).await.map_err(|e| e.to_string())?;
    equal("processes left", left.stdout.as_ref(), b"0\n".as_slice())
}

async fn exec_carries_standard_input_until_it_is_closed(world: Arc<World>) -> Outcome {
    let sandbox = world.sandbox().await?;
    let id = world.start(&sandbox, world.script("main", "sleep 1000")).await?;
    let request = v1::ExecRequest { container_id: id, cmd: vec!["cat".into()], tty: false, stdin: true, stdout: true, stderr: true };
    let mut streams = world.subject.runtime.exec(request).await.map_err(|e| e.to_string())?;
    let text = vec![b'x'; 300_000];
    let (mut stdin, mut stdout) = (streams.stdin.take().ok_or("no input")?, streams.stdout.take().ok_or("no output")?);
    let wanted = text.clone();
    let feed = async move {
        stdin.write_all(&text).await?;
        stdin.shutdown().await
    };
    let mut got = Vec::new();
    let both = async { tokio::join!(feed, stdout.read_to_end(&mut got)) };
    let (fed, read) = tokio::time::timeout(PATIENCE, both).await.map_err(|_| "cat does not end")?;
    fed.and(read.map(drop)).map_err(|e| e.to_string())?;
    check(got == wanted, || format!("{} bytes came back", got.len()))?;
    equal("exit code", streams.exit.await.ok(), Some(0))
}

async fn exec_with_a_terminal_has_a_size_and_a_session(world: Arc<World>) -> Outcome {
    let sandbox = world.sandbox().await?;
    let id = world.start(&sandbox, world.script("main", "sleep 1000")).await?;
    let cmd = ["/bin/sh", "-c", "read go; tty; stty size; exit 3"].map(String::from).into();
    let request = v1::ExecRequest { container_id: id, cmd, tty: true, stdin: true, stdout: true, stderr: false };
    let mut streams = world.subject.runtime.exec(request).await.map_err(|e| e.to_string())?;
    let resize = streams.resize.take().ok_or("no resize")?;
    resize.send(TerminalSize { width: 91, height: 37 }).await.map_err(|e| e.to_string())?;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let (mut stdin, mut stdout) = (streams.stdin.take().ok_or("no input")?, streams.stdout.take().ok_or("no output")?);
    stdin.write_all(b"go\n").await.map_err(|e| e.to_string())?;
    let mut got = Vec::new();
    tokio::time::timeout(PATIENCE, stdout.read_to_end(&mut got))
        .await
        .map_err(|_| "the terminal does not end")?
        .map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&got).into_owned();
    check(text.contains("/dev/pts/") && text.contains("37 91"), || format!("the terminal says {text:?}"))?;
    equal("exit code", streams.exit.await.ok(), Some(3))
}

async fn attach_sees_output_and_feeds_input(world: Arc<World>) -> Outcome {
    let sandbox = world.sandbox().await?;
    for (name, tty) in [("plain", false), ("terminal", true)] {
        let mut config = world.script(name, "while read line; do echo \"got $line\"; [ $line = end ] && exit 4; done; exit 9");
        (config.stdin, config.tty) = (true, tty);
        let id = world.start(&sandbox, config).await?;
        let request = v1::AttachRequest { container_id: id.clone(), stdin: true, tty, stdout: true, stderr: !tty };
        let mut streams = world.subject.runtime.attach(request).await.map_err(|e| e.to_string())?;
        let (mut stdin, mut stdout) = (streams.stdin.take().ok_or("no input")?, streams.stdout.take().ok_or("no output")?);
        stdin.write_all(b"one\nend\n").await.map_err(|e| e.to_string())?;
        let mut got = Vec::new();
        tokio::time::timeout(PATIENCE, stdout.read_to_end(&mut got))
            .await
            .map_err(|_| format!("{name} does not end"))?
            .map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&got).into_owned();
        check(text.contains("got one") && text.contains("got end"), || format!("{name} says {text:?}"))?;
        // A streaming URL tells no exit code of an attach: there its end is success.
        let exit = streams.exit.await.ok();
        check(matches!(exit, Some(4 | 0)), || format!("{name} exits with {exit:?}"))?;
        check(world.log(name)?.iter().any(|l| l.starts_with("stdout F got end")), || format!("{:?}", world.log(name)))?;
    }
    Ok(())
}

async fn environment_working_directory_and_user_are_the_containers(world: Arc<World>) -> Outcome {
    let mut config = world.script("main", "echo $GREETING; pwd; id -u; id -g; id -G; echo $HOSTNAME; umask");
    config.envs = vec![v1::KeyValue { key: "GREETING".into(), value: b"good day".as_slice().into() }];
    config.working_dir = "/made/for/this".into();
    let context = security(&mut config);
    context.run_as_user = Some(v1::Int64Value { value: 1234 });
    context.run_as_group = Some(v1::Int64Value { value: 2345 });
    context.supplemental_groups = vec![3456];
    let (_, log) = world.output(config).await?;
    let lines: Vec<&str> = log.iter().filter_map(|l| l.strip_prefix("stdout F ")).collect();
    equal("lines", lines, vec!["good day", "/made/for/this", "1234", "2345", "2345 3456", "contract-host", "0022"])
}

async fn a_volume_is_mounted_and_read_only_means_so(world: Arc<World>) -> Outcome {
    let directory = world.directory().join("volume");
    std::fs::create_dir_all(directory.join("sub")).map_err(|e| e.to_string())?;
    std::fs::write(directory.join("file"), "content\n").map_err(|e| e.to_string())?;
    let mut config = world.script("main", "cat /data/file /single; echo new > /data/new; echo no > /fixed/no || echo refused; ls /deep/er");
    let mount = |host: std::path::PathBuf, to: &str, readonly| v1::Mount {
        container_path: to.into(),
        host_path: host.display().to_string(),
        readonly,
        ..Default::default()
    };
    config.mounts = vec![
        mount(directory.join("file"), "/single", true),
        mount(directory.clone(), "/fixed", true),
        mount(directory.clone(), "/deep/er", false),
        mount(directory.clone(), "/data", false),
    ];
    let (code, log) = world.output(config).await?;
    equal("exit code", code, 0)?;
    let lines: Vec<&str> = log.iter().filter_map(|l| l.strip_prefix("stdout F ")).collect();
    equal("lines", lines, vec!["content", "content", "refused", "file", "new", "sub"])?;
    equal("written", std::fs::read_to_string(directory.join("new")).ok(), Some("new\n".to_owned()))
}

async fn a_read_only_root_cannot_be_written(world: Arc<World>) -> Outcome {
    let mut config = world.script("main", "echo x > /file || echo refused; echo x > /dev/null && echo x > /dev/shm/y && echo shm; echo 1 > /proc/sys/kernel/pid_max || echo fixed");
    security(&mut config).readonly_rootfs = true;
    let (_, log) = world.output(config).await?;
    let lines: Vec<&str> = log.iter().filter_map(|l| l.strip_prefix("stdout F ")).collect();
    equal("lines", lines, vec!["refused", "shm", "fixed"])
}

async fn capabilities_are_the_default_set_or_what_was_asked(world: Arc<World>) -> Outcome {
    for (name, add, drop, bounding) in [
        ("plain", vec![], vec![], "00000000a80425fb"),
        ("none", vec![], vec!["ALL"], "0000000000000000"),
        ("one", vec!["NET_ADMIN"], vec!["ALL"], "0000000000001000"),
    ] {
        let mut config =
            world.script(name, "grep CapBnd /proc/self/status; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status");
        let strings = |list: Vec<&str>| list.into_iter().map(String::from).collect();
        let context = security(&mut config);
        context.no_new_privs = true;
        if name != "plain" {
            context.capabilities =
                Some(v1::Capability { add_capabilities: strings(add), drop_capabilities: strings(drop), ..Default::default() });
        }
        let (_, log) = world.output(config).await?;
        let values: Vec<&str> = log.iter().filter_map(|l| l.split('\t').nth(1)).collect();
        equal(name, values, vec![bounding, bounding, "1"])?;
    }
    Ok(())
}

async fn memory_beyond_the_limit_is_an_oom_kill(world: Arc<World>) -> Outcome {
    let sandbox = world.sandbox().await?;
    let mut config = world.script("main", "a=x; while :; do a=$a$a; done");
    let resources =
        v1::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, memory_swap_limit_in_bytes: 16 << 20, ..Default::default() };
    config.linux.get_or_insert_default().resources = Some(resources);
    let id = world.start(&sandbox, config).await?;
    let status = world.ended(&id).await?;
    equal("end", (status.exit_code, status.reason.as_str()), (137, "OOMKilled"))
}

async fn containers_of_a_pod_share_network_and_host_name(world: Arc<World>) -> Outcome {
    let sandbox = world.sandbox().await?;
    world.start(&sandbox, world.script("server", "echo hello > /index.html; echo up; exec httpd -f -p 127.0.0.1:8099 -h /")).await?;
    world.log_has("server", "stdout F up").await?;
    let script = "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://127.0.0.1:8099/index.html && break; sleep 0.1; done; hostname; ls /proc | grep -c '^[0-9]'";
    let id = world.start(&sandbox, world.script("client", script)).await?;
    world.ended(&id).await?;
    let log = world.log("client")?;
    check(log.iter().any(|l| l == "stdout F hello") && log.iter().any(|l| l == "stdout F contract-host"), || format!("{log:?}"))
}

async fn a_shared_pid_namespace_shows_the_other_containers(world: Arc<World>) -> Outcome {
    let shared = v1::NamespaceOption { pid: v1::NamespaceMode::Pod as i32, ..private_namespaces() };
    let mut config = world.sandbox_config();
    if let Some(context) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        context.namespace_options = Some(shared.clone());
    }
    let sandbox = world.sandbox_with(config).await?;
    let with = |name: &str, script: &str| {
        let mut config = world.script(name, script);
        security(&mut config).namespace_options = Some(shared.clone());
        config
    };
    let first = world.start(&sandbox, with("first", "sleep 4711 & wait")).await?;
    let second = world
        .start(&sandbox, with("second", "for i in 1 2 3 4 5 6 7 8 9; do ps | grep '[s]leep 4711' && break; sleep 0.1; done; echo $$"))
        .await?;
    world.ended(&second).await?;
    let log = world.log("second")?;
    check(log.iter().any(|l| l.contains("sleep 4711")), || format!("{log:?}"))?;
    check(!log.contains(&"stdout F 1".to_owned()), || "it is process 1".into())?;
    world
        .subject
        .runtime
        .stop_container(v1::StopContainerRequest { container_id: first.clone(), timeout: 0 })
        .await
        .map_err(|e| e.to_string())?;
    equal("exit code", world.status(&first).await?.exit_code, 137)
}

async fn port_forward_reaches_a_server_in_the_pod(world: Arc<World>) -> Outcome {
    let sandbox = world.sandbox().await?;
    world.start(&sandbox, world.script("server", "echo hello > /index.html; echo up; exec httpd -f -p 127.0.0.1:8099 -h /")).await?;
    world.log_has("server", "stdout F up").await?;
    let until = tokio::time::Instant::now() + PATIENCE;
    let mut stream = loop {
        match world.subject.runtime.port_forward(sandbox.clone(), 8099).await {
            Ok(forward) => break forward.stream,
            Err(error) => check(tokio::time::Instant::now() < until, || error.to_string())?,
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await.map_err(|e| e.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(|e| e.to_string())?;
    check(answer.ends_with("hello\n"), || answer)?;
    // Over a streaming URL the refusal comes later.
    match world.subject.runtime.port_forward(sandbox, 8098).await {
        Err(refused) => check(refused.message.contains("8098"), || refused.message),
        Ok(mut nothing) => {
            let mut byte = [0; 1];
            let read =
                tokio::time::timeout(PATIENCE, nothing.stream.read(&mut byte)).await.map_err(|_| "a connection to nothing stays open")?;
            check(read.is_err() || read.is_ok_and(|bytes| bytes == 0), || "nothing answers".into())?;
            let said = nothing.failure.ok_or("the runtime gives no reason")?.await.unwrap_or_default();
            check(said.contains("8098"), || said)
        }
    }
}

async fn a_reopened_log_is_written_anew(world: Arc<World>) -> Outcome {
    let sandbox = world.sandbox().await?;
    let id = world.start(&sandbox, world.script("main", "while :; do echo line; sleep 0.02; done")).await?;
    world.log_has("main", "stdout F line").await?;
    let path = world.directory().join("logs/main.log");
    std::fs::rename(&path, path.with_extension("old")).map_err(|e| e.to_string())?;
    world.subject.runtime.reopen_container_log(v1::ReopenContainerLogRequest { container_id: id }).await.map_err(|e| e.to_string())?;
    world.log_has("main", "stdout F line").await
}

async fn stats_grow_with_use(world: Arc<World>) -> Outcome {
    let sandbox = world.sandbox().await?;
    let id =
        world.start(&sandbox, world.script("main", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo worked; sleep 1000")).await?;
    world.log_has("main", "stdout F worked").await?;
    let request = v1::ContainerStatsRequest { container_id: id };
    let stats = world.subject.runtime.container_stats(request).await.map_err(|e| e.to_string())?.stats.ok_or("no stats")?;
    let cpu = stats.cpu.and_then(|c| c.usage_core_nano_seconds).map_or(0, |v| v.value);
    let memory = stats.memory.and_then(|m| m.working_set_bytes).map_or(0, |v| v.value);
    check(cpu > 100_000 && memory > 4096, || format!("cpu {cpu} ns, memory {memory} bytes"))?;
    let pod = match world.subject.runtime.pod_sandbox_stats(v1::PodSandboxStatsRequest { pod_sandbox_id: sandbox }).await {
        // containerd counts only pods whose control group its caller made.
        Err(error) if error.message.contains("cgroupPath is empty") => return Ok(()),
        pod => pod.map_err(|e| e.to_string())?,
    };
    equal("containers", pod.stats.and_then(|s| s.linux).map(|l| l.containers.len()), Some(1))
}

async fn events_tell_of_every_step(world: Arc<World>) -> Outcome {
    use futures_util::StreamExt;
    let mut events = match world.subject.runtime.get_container_events().await {
        // Older runtimes have none, and are looked at instead.
        Err(error) if error.code == crate::Code::Unimplemented => return Ok(()),
        events => events.map_err(|e| e.to_string())?,
    };
    let sandbox = world.sandbox().await?;
    let id = world.start(&sandbox, world.script("main", "exit 0")).await?;
    world.ended(&id).await?;
    world.subject.runtime.remove_container(v1::RemoveContainerRequest { container_id: id.clone() }).await.map_err(|e| e.to_string())?;
    let mut kinds = Vec::new();
    while kinds.len() < 4 {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.map_err(|_| format!("only {kinds:?} came"))?;
        let event = event.ok_or("the events ended")?.map_err(|e| e.to_string())?;
        if event.container_id == id {
            kinds.push(event.container_event_type);
        }
    }
    // The stop of a container that ends at once may be told before its start.
    kinds.sort_unstable();
    equal("kinds", kinds, vec![0, 1, 2, 3])
}

async fn lists_are_filtered(world: Arc<World>) -> Outcome {
    let (one, two) = (world.sandbox().await?, world.sandbox().await?);
    let running = world.start(&one, world.script("main", "sleep 1000")).await?;
    world.create(&two, world.script("main", "true")).await?;
    let list = |filter: v1::ContainerFilter| async {
        let request = v1::ListContainersRequest { filter: Some(filter) };
        let containers = world.subject.runtime.list_containers(request).await.map_err(|e| e.to_string())?.containers;
        Outcome::Ok(containers.into_iter().map(|c| c.id).collect::<Vec<_>>())
    };
    let of_one = v1::ContainerFilter { pod_sandbox_id: one.clone(), ..Default::default() };
    equal("containers of one", list(of_one).await?, vec![running.clone()])?;
    let state = Some(v1::ContainerStateValue { state: v1::ContainerState::ContainerCreated as i32 });
    check(!list(v1::ContainerFilter { state, ..Default::default() }).await?.contains(&running), || {
        "a running one is listed as created".into()
    })?;
    let label_selector = [("case".to_owned(), "lists_are_filtered".to_owned())].into();
    let filter = Some(v1::PodSandboxFilter { label_selector, ..Default::default() });
    let mine = world.subject.runtime.list_pod_sandbox(v1::ListPodSandboxRequest { filter }).await.map_err(|e| e.to_string())?.items;
    equal("sandboxes", mine.len(), 2)
}
