#!/usr/bin/env escript
%% Executes rabbitmqctl commands in one Erlang machine, for broker.sh. A machine for each command
%% takes 0.8 s of CPU, nearly all of it to start.
%%
%%   rabbitmqctl.escript RABBITMQCTL FOLDER
%%
%% RABBITMQCTL is RabbitMQ's own escript, which is unpacked into FOLDER/ctl. A command is a line
%% with the number of its arguments, then a line for each. What it prints goes to
%% FOLDER/ctl.out, and then `ok` or `error` to FOLDER/ctl.status. The end of standard input
%% ends this program.

main([Escript, Folder]) ->
    ok = io:setopts([binary, {encoding, unicode}]),
    load(Escript, filename:join(Folder, "ctl")),
    serve(Folder).

load(Escript, Folder) ->
    {ok, Sections} = escript:extract(Escript, []),
    {archive, Archive} = lists:keyfind(archive, 1, Sections),
    {ok, _} = zip:unzip(Archive, [{cwd, Folder}]),
    ok = code:add_pathsa([Folder | filelib:wildcard(filename:join(Folder, "*/ebin"))]),
    [{ok, _} = application:ensure_all_started(App) || App <- [elixir, rabbitmqctl]],
    ok = logger:set_primary_config(level, error).

serve(Folder) ->
    case io:get_line("") of
        eof -> ok;
        Number ->
            Read = fun(_) -> string:chomp(io:get_line("")) end,
            Args = lists:map(Read, lists:seq(1, binary_to_integer(string:chomp(Number)))),
            Verdict = execute(Args, filename:join(Folder, "ctl.out")),
            ok = file:write_file(filename:join(Folder, "ctl.status"), Verdict),
            serve(Folder)
    end.

%% A process of its own has the file as its standard output.
execute(Args, Path) ->
    {ok, File} = file:open(Path, [write, {encoding, utf8}]),
    Print = fun(Output, Command, Options) -> print(Output, Command, Options) end,
    {Executor, Reference} = spawn_monitor(fun() ->
        group_leader(File, self()),
        exit({ended, 'Elixir.RabbitMQCtl':exec_command(Args, Print)})
    end),
    Result = receive {'DOWN', Reference, process, Executor, Reason} -> Reason end,
    Verdict = verdict(Result, File),
    ok = file:close(File),
    Verdict.

print(Output, Command, Options) ->
    Config = 'Elixir.RabbitMQ.CLI.Core.Config',
    Formatter = Config:get_formatter(Command, Options),
    Printer = Config:get_printer(Command, Options),
    Core = 'Elixir.RabbitMQ.CLI.Core.Output',
    Core:print_output(Core:format_output(Output, Formatter, Options), Printer, Options).

verdict({ended, {Atom, Code, Text}}, File) when is_atom(Atom), is_integer(Code) ->
    Show = fun(Line) -> 'Elixir.RabbitMQ.CLI.Core.Helpers':string_or_inspect(Line) end,
    [ok = io:format(File, "~ts~n", [Show(Line)]) || Line <- lists:flatten([Text]), Line =/= nil],
    if Code =:= 0, Atom =/= error -> "ok"; true -> "error" end;
verdict({ended, Result}, _) when not is_tuple(Result); element(1, Result) =/= error -> "ok";
verdict(Unexpected, File) ->
    ok = io:format(File, "~tp~n", [Unexpected]),
    "error".
