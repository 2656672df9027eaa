package worker

const childEnv = "COMMITCAST_WORKER_TEST_CHILD"

func child() {}
