"""A real service, killed, damaged and starved, and what is left is counted; each with a service that is wrong on purpose.

`make faults` runs what is below, `make soak` its long form; docs/guarantees.md says what it proves. What asserts how fast a service
answers is marked `alone`: nothing else runs beside it. The list of tests and faults that was drawn up before anything was built, and
where each is now. In the order of the promises:

T1   no answer before its data is synchronised
         tests/faults/test_sync_before_answer.py
         tests/faults/test_sync_folders.py
T2   kill -9
         tests/faults/test_kill.py
         tests/faults/test_counters.py
T3   power cuts
         tests/faults/test_power_cut.py
T4   SIGTERM under load
         tests/faults/test_graceful_stop.py
         tests/test_service.py::test_sigterm_under_load_answers_what_is_in_hand_and_loses_nothing
T5   full disk
         tests/faults/test_full_disk.py
T6   EIO
         tests/faults/test_io_error.py
T7   damage
         tests/faults/test_damage.py
         tests/pipeline/test_journal_failures.py::test_a_damaged_record_costs_itself_alone
T8   full journal
         tests/faults/test_full_journal.py
         tests/pipeline/test_drop_oldest.py
T9   long outage
         tests/faults/test_long_outage.py
T10  poison
         tests/faults/test_poison.py
         tests/pipeline/test_handover.py
T11  partial success
         tests/faults/test_collectors.py::test_of_a_hundred_seven_that_are_rejected_are_counted_and_not_sent_again
T12  isolation
         tests/faults/test_collectors.py::test_a_collector_that_never_answers_holds_up_neither_the_store_nor_a_push
T13  idempotency
         tests/faults/test_idempotent_retries.py
T14  accounting
         tests/test_books.py
         tests/test_books_intake.py;
         the last assertion of every test that runs a service
T15  start-up
         tests/faults/test_start_up.py
T16  bombs
         tests/faults/test_bombs.py
T17  slow clients
         tests/faults/test_slow_clients.py
T18  cardinality
         tests/faults/test_label_explosion.py
T19  exposition
         tests/test_hostile_labels.py
         tests/test_prometheus.py
T20  clocks
         tests/faults/test_clock.py
         tests/plugins/extensions/retention/test_cleanup.py::test_nothing_is_deleted_after_the_clock_was_moved_until_it_is_right_again
T21  everything at once
         tests/faults/test_oracle.py
T22  the journal against a model
         tests/pipeline/test_journal_model.py

Faults:

F1   kill -9 at a random moment of anything
         tests/faults/test_kill.py;
         of a delivery: tests/faults/test_forwarding.py
         of a migration and a backup: tests/faults/test_kill_commands.py
F2   power cut
         tests/faults/test_power_cut.py
F3   SIGTERM, SIGINT, twice; SIGHUP
         tests/test_service.py::test_a_second_sigterm_ends_the_process_at_once_and_loses_nothing
         tests/test_service.py::test_sigint_stops_it_too
         tests/faults/test_reload.py
F4   SIGSTOP, then SIGCONT
         tests/faults/test_standstill.py::test_who_stood_still_goes_on_and_sends_no_more_than_one_request_twice
F5   disk full; a log that cannot be written
         tests/faults/test_full_disk.py
         tests/pipeline/test_logs.py::test_a_log_that_cannot_be_written_fails_nobody
F6   EIO
         tests/faults/test_io_error.py
F8   second process
         tests/faults/test_standstill.py::test_a_second_process_is_turned_away_and_the_first_notices_nothing
F9   another program locks the database
         tests/faults/test_others_in_the_database.py
F10  a long reader
         tests/faults/test_others_in_the_database.py
         tests/plugins/extensions/database/test_transactions.py::test_a_service_checkpoints_again_after_a_reader_has_held_it_up
         tests/plugins/extensions/database/test_transactions.py::test_a_query_that_takes_too_long_is_interrupted_and_the_next_is_answered
F11  a collector that answers anything
         tests/plugins/exporters/otlp/test_answers_done.py
         tests/plugins/exporters/otlp/test_answers_said.py
         tests/plugins/exporters/otlp/test_connections.py
         tests/plugins/exporters/otlp/test_tls.py
F12  a collector that is away for three days
         tests/faults/test_long_outage.py
F13  the link goes down and up
         tests/faults/test_link.py
F15  a memory limit
         tests/faults/test_memory_limit.py
F16  a clock that is moved
         tests/faults/test_clock.py
F17  a later version's data
         tests/faults/test_versions.py::test_a_schema_of_a_later_version_is_refused_and_every_file_stays_as_it_is
F18  an earlier version's data
         tests/faults/test_versions.py::test_the_journal_of_an_earlier_version_is_read_to_the_last_event
F19  the committer's thread raises
         tests/faults/test_supervision.py
         tests/pipeline/test_journal_failures.py::test_a_thread_that_dies_with_a_commit_in_hand_leaves_nobody_waiting
"""
