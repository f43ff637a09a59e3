fn main(){ exporter::try_load() }
