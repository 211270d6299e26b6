//! A stage while it is built: its configuration document and layers so far, and what instructions that only change the configuration do.

use images::Layer;
use serde_json::{Value, json};

use crate::dockerfile::{Command, Instruction};
use crate::words::{self, Variables};

/// Builds of the same content give the same image: nothing in it tells the time.
pub const CREATED: &str = "1970-01-01T00:00:00Z";

#[derive(Clone)]
pub struct Stage {
    /// The whole configuration document of the image.
    pub config: Value,
    pub layers: Vec<Layer>,
    /// `ARG`s that the stage has declared.
    pub arguments: Variables,
    /// An `ENTRYPOINT` of this Dockerfile drops the base's `CMD`, unless the file has its own.
    has_command: bool,
}

impl Stage {
    pub fn new(mut config: Value, layers: Vec<Layer>) -> Self {
        config["created"] = json!(CREATED);
        if !config["history"].is_array() {
            config["history"] = json!([]);
        }
        Self { config, layers, arguments: Variables::new(), has_command: false }
    }

    pub fn scratch() -> Self {
        Self::new(json!({ "architecture": images::architecture(), "os": "linux", "config": {} }), Vec::new())
    }

    /// What `$NAME` means here: `ENV` goes before `ARG`.
    pub fn variables(&self) -> Variables {
        let mut all = self.arguments.clone();
        all.extend(self.environment());
        all
    }

    fn environment(&self) -> Vec<(String, String)> {
        let lines = self.config["config"]["Env"].as_array().into_iter().flatten().filter_map(Value::as_str);
        lines.filter_map(|line| line.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// `ARG`s that the image's own variables do not hide, for a command.
    pub fn arguments_for_command(&self) -> Vec<(String, String)> {
        let environment = self.environment();
        self.arguments
            .iter()
            .filter(|(name, _)| !environment.iter().any(|(known, _)| known == *name))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }

    pub fn workdir(&self) -> String {
        let set = self.config["config"]["WorkingDir"].as_str().unwrap_or_default();
        if set.is_empty() { "/".into() } else { set.to_owned() }
    }

    pub fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') {
            return path.to_owned();
        }
        // `.` is the folder itself, and so is `./`.
        let path = path.trim_start_matches("./");
        let path = if path == "." { "" } else { path };
        format!("{}/{path}", self.workdir().trim_end_matches('/'))
    }

    /// A command as a list of words; a shell's form goes through the stage's shell.
    pub fn command(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(text) => {
                let shell = self.config["config"]["Shell"].as_array();
                let shell: Vec<String> = shell.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
                let shell = if shell.is_empty() { vec!["/bin/sh".into(), "-c".into()] } else { shell };
                shell.into_iter().chain([text.clone()]).collect()
            }
        }
    }

    pub fn history(&mut self, text: &str, has_layer: bool) {
        let mut entry = json!({ "created": CREATED, "created_by": text });
        if !has_layer {
            entry["empty_layer"] = json!(true);
        }
        if let Some(history) = self.config["history"].as_array_mut() {
            history.push(entry);
        }
    }

    /// Instructions that only change the configuration; false for all others.
    pub fn configure(&mut self, instruction: &Instruction, given: &Variables, escape: char) -> Result<bool, String> {
        let variables = self.variables();
        let expand = |text: &str| words::expand(text, &variables, escape);
        let word = |text: &str| -> Result<String, String> { Ok(words::split(&expand(text)?, escape)?.join(" ")) };
        match instruction {
            Instruction::Env(pairs) => {
                for (key, value) in pairs {
                    let value = word(value)?;
                    self.set_variable(key, &value);
                }
            }
            Instruction::Arg(name, default) => {
                let default = default.as_deref().map(word).transpose()?;
                if let Some(value) = given.get(name).cloned().or(default) {
                    self.arguments.insert(name.clone(), value);
                }
            }
            Instruction::Label(pairs) => {
                for (key, value) in pairs {
                    let (key, value) = (expand(key)?, word(value)?);
                    self.config["config"]["Labels"][key] = json!(value);
                }
            }
            Instruction::User(user) => self.config["config"]["User"] = json!(word(user)?),
            Instruction::Cmd(command) => {
                self.config["config"]["Cmd"] = json!(self.command(command));
                self.has_command = true;
            }
            Instruction::Entrypoint(command) => {
                self.config["config"]["Entrypoint"] = json!(self.command(command));
                if !self.has_command {
                    self.config["config"]["Cmd"] = Value::Null;
                }
            }
            Instruction::Expose(ports) => {
                for port in words::split(&expand(ports)?, escape)? {
                    let port = port_of(&port)?;
                    self.config["config"]["ExposedPorts"][port] = json!({});
                }
            }
            Instruction::Volume(paths) => {
                for path in paths {
                    let path = expand(path)?;
                    self.config["config"]["Volumes"][path] = json!({});
                }
            }
            Instruction::Shell(words) => self.config["config"]["Shell"] = json!(words),
            Instruction::StopSignal(signal) => self.config["config"]["StopSignal"] = json!(word(signal)?),
            Instruction::Maintainer(name) => self.config["author"] = json!(name),
            Instruction::Healthcheck => {}
            Instruction::Run(_) | Instruction::Copy(_) | Instruction::Workdir(_) => return Ok(false),
        }
        Ok(true)
    }

    fn set_variable(&mut self, key: &str, value: &str) {
        let mut all = self.environment();
        match all.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => value.clone_into(old),
            None => all.push((key.to_owned(), value.to_owned())),
        }
        self.config["config"]["Env"] = all.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    }
}

/// `80`, `80/udp`.
fn port_of(text: &str) -> Result<String, String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let range = port.split('-').all(|number| number.parse::<u16>().is_ok());
    let known = matches!(protocol.to_lowercase().as_str(), "tcp" | "udp" | "sctp");
    if range && known { Ok(format!("{port}/{}", protocol.to_lowercase())) } else { Err(format!("EXPOSE {text}: not a port")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::parse;

    fn built(text: &str, given: &[(&str, &str)]) -> Stage {
        let given: Variables = given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut stage = Stage::scratch();
        for step in &parse(&format!("FROM scratch\n{text}")).unwrap().stages[0].steps {
            assert!(stage.configure(&step.instruction, &given, '\\').unwrap(), "{step:?}");
        }
        stage
    }

    #[test]
    fn the_configuration_says_what_the_dockerfile_says() {
        let stage = built(
            "ARG V=1\nENV A=\"x y\" B=$V\nENV A=${A}z\nLABEL l=\"$B\" \"m n\"=o\nUSER www\nEXPOSE 80 53/udp\nVOLUME [\"/a\", \"/b\"]\n\
             SHELL [\"/bin/bash\", \"-c\"]\nENTRYPOINT run $A\nCMD [\"x\"]\nSTOPSIGNAL SIGINT\nHEALTHCHECK NONE",
            &[("V", "2"), ("UNDECLARED", "x")],
        );
        let config = &stage.config["config"];
        assert_eq!(config["Env"], json!(["A=x yz", "B=2"]));
        assert_eq!(config["Labels"], json!({ "l": "2", "m n": "o" }));
        assert_eq!(config["ExposedPorts"], json!({ "80/tcp": {}, "53/udp": {} }));
        assert_eq!(config["Volumes"], json!({ "/a": {}, "/b": {} }));
        assert_eq!(config["Entrypoint"], json!(["/bin/bash", "-c", "run $A"]));
        assert_eq!(
            (config["Cmd"].clone(), config["User"].clone(), config["StopSignal"].clone()),
            (json!(["x"]), json!("www"), json!("SIGINT"))
        );
        assert_eq!(stage.arguments_for_command(), [("V".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn an_entrypoint_drops_the_command_of_the_base_only() {
        let mut stage = Stage::scratch();
        stage.config["config"]["Cmd"] = json!(["of", "the", "base"]);
        stage.configure(&Instruction::Entrypoint(Command::Exec(vec!["e".into()])), &Variables::new(), '\\').unwrap();
        assert!(stage.config["config"]["Cmd"].is_null());
        assert_eq!(built("CMD a\nENTRYPOINT [\"e\"]", &[]).config["config"]["Cmd"], json!(["/bin/sh", "-c", "a"]));
    }

    #[test]
    fn paths_are_taken_from_the_working_folder() {
        let mut stage = Stage::scratch();
        assert_eq!(stage.absolute("x"), "/x");
        stage.config["config"]["WorkingDir"] = json!("/app");
        for (path, absolute) in [("x/", "/app/x/"), (".", "/app/"), ("./", "/app/"), ("/y", "/y"), ("../z", "/app/../z")] {
            assert_eq!(stage.absolute(path), absolute, "{path}");
        }
        assert!(port_of("http").is_err() && port_of("80/icmp").is_err());
    }
}
