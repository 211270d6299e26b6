mod config;
mod kubeconfig;
mod preflight;
mod toolbox;
fn main() {
    if let Some(code) = toolbox::dispatch() {
        std::process::exit(code);
    }
    let _ = toolbox::links();
}
