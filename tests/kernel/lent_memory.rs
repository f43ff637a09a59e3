//! Memory whose pages the program supplies itself (userfaultfd): the thread that supplies them must not be made to wait
//! for itself.

use std::process::Command;

use crate::support::program::{compile, directory, run};
use crate::support::tracer::Tracer;

const SOURCE: &str = r#"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#define PAGES 50
static int faults;
static char page[4096];
__attribute__((noinline)) int supplies(char *at)
{
	struct uffdio_copy copy = { (unsigned long)at & ~4095UL, (unsigned long)page, sizeof(page), 0, 0 };
	return ioctl(faults, UFFDIO_COPY, &copy);
}
__attribute__((noinline)) int uses(const char *text) { return *(volatile const char *)text; }
static void *supplier(void *unused)
{
	struct uffd_msg message;
	while (read(faults, &message, sizeof(message)) == sizeof(message))
		if (supplies((char *)message.arg.pagefault.address))
			perror("UFFDIO_COPY");
	return unused;
}
int main(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	char *memory = mmap(0, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register all = { { (unsigned long)memory, PAGES * 4096 }, UFFDIO_REGISTER_MODE_MISSING, 0 };
	pthread_t thread;
	int sum = 0;
	strcpy(page, "text");
	faults = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (ioctl(faults, UFFDIO_API, &api) || ioctl(faults, UFFDIO_REGISTER, &all)) {
		perror("userfaultfd");
		return 1;
	}
	pthread_create(&thread, 0, supplier, 0);
	for (int n = 0; n < PAGES; n++)
		sum += uses(memory + n * 4096);
	printf("%d\n", sum);
	return 0;
}
"#;

#[test]
fn does_not_wait_for_userfaultfd_memory() {
    let directory = directory();
    let program = compile("gcc", "lent.c", SOURCE, &["-pthread"], directory.path());
    for (attach, kind) in [("auto", "string"), ("auto", "u64"), ("perf", "string")] {
        let arg = match kind {
            "string" => "{ index: 0, type: string }",
            _ => "{ index: 0, type: u64, offset: 0 }",
        };
        let yaml = format!(
            "node_name: test\nattach: {attach}\ntargets:\n- name: lent\n  binary: {}\n  probes:\n  - function: supplies\n    \
             args: {{ v: {arg} }}\n    metrics: [{{ counter: supplied_total, labels: {{ v: v }} }}]\n  - function: uses\n    \
             args: {{ v: {arg} }}\n    metrics: [{{ counter: used_total, labels: {{ v: v }} }}]\n",
            program.display()
        );
        let tracer = Tracer::start(&yaml);
        // A thread that waits for itself would hang forever.
        assert_eq!(
            run(Command::new("timeout").arg("100").arg(&program)),
            format!("{}\n", 50 * i32::from(b't'))
        );
        let accounting = tracer.accounting_at_rest();
        assert_eq!((accounting[0].hits, accounting[1].hits), (50, 50), "{attach}, {kind}: {accounting:?}");
    }
}
