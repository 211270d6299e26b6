pub struct ImageRef;
