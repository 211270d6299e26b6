use std::sync::Arc;
impl crate::Store {
    pub async fn pull(self: Arc<Self>, name: &str, _auth: Option<&cri::v1::AuthConfig>) -> crate::Result<crate::Image> {
        self.resolve(name).ok_or_else(|| crate::Error::Pull { reference: name.into(), reason: "not found".into(), not_found: true })
    }
}
