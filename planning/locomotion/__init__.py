"""Planning for a half cheetah: motions of states and actions, guided by a value or asked for a return."""
